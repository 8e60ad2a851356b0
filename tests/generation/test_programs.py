"""What is compiled: few programs for any prompts, one for all settings, a loop that stays on the device."""

import logging

import jax
import numpy as np
import pytest

from idefics_jax import IdeficsForVisionText2Text, IdeficsVisionConfig
from idefics_jax.generation import decode, run
from idefics_jax.parallel.mesh import make_mesh
from tests.reference.generation import EOS, ROWS, SAMPLING, config, random_model, random_prompts, shared_model

NEW = {"max_new_tokens": 12, "eos_token_id": EOS}


def unusual(width=16, **changes):
    """A model of sizes that no other test has: nothing of what it runs was compiled before."""
    vision = IdeficsVisionConfig(
        embed_dim=width, image_size=28, intermediate_size=40, num_hidden_layers=1, num_attention_heads=2
    )
    return random_model(config(vocab_size=97, vision_config=vision, **changes))


@pytest.fixture
def compiled(caplog):
    """Counts the programs compiled since it was called last."""
    with jax.log_compiles(), caplog.at_level(logging.WARNING, "jax"):

        def count():
            messages = [record.getMessage() for record in caplog.records]
            names = [message.split()[1] for message in messages if message.startswith("Compiling ")]
            caplog.clear()
            return {name: names.count(name) for name in names}

        yield count


@pytest.mark.parametrize(("most_rows", "most_programs"), [(1, 14), pytest.param(4, 32, marks=pytest.mark.slow)])
def test_fifty_prompts_share_a_handful_of_programs(most_rows, most_programs, compiled, capsys):
    """Each of 1 to 300 tokens and 0 to 8 images, alone; and fifty batches of 1 to 4 such."""
    model, random = unusual(width=12 + 4 * most_rows, max_position_embeddings=1024), np.random.default_rng(0)
    compiled()
    for seed in range(50):
        shortest, rows = int(random.integers(1, 200)), int(random.integers(1, most_rows + 1))
        batch = random_prompts(model.config, seed, rows, lengths=(shortest, shortest + 100), images=(0, 8))
        model.generate(**batch, **NEW)
    programs = compiled()
    with capsys.disabled():
        print(f"\n50 prompts or batches of up to {most_rows}: {sum(programs.values())} programs {programs}")
    assert sum(programs.values()) <= most_programs
    assert programs["jit(_read_images)"] == 2


def test_settings_compile_nothing(compiled):
    model = unusual()
    compiled()
    batch = random_prompts(model.config, 0, 2)
    model.generate(**batch, **NEW, do_sample=True, bad_words_ids=[[7, 8]])
    assert compiled()["jit(_decode)"] == 1
    for seed, rules in enumerate(SAMPLING):
        words = [[7, 8], *[[word] for word in range(seed)]]
        settings = {**NEW, "max_new_tokens": 3 + seed, **rules, "bad_words_ids": words}
        model.generate(**batch, **settings, do_sample=True, seed=seed, pad_token_id=seed)
    assert compiled() == {}


@pytest.mark.parametrize("options", [{}, {"do_sample": True}, {"num_beams": 2}], ids=str)
def test_decoding_never_leaves_the_device(options, monkeypatch):
    """All tokens after the first come from one call of one program: a loop that calls nothing on the host."""
    model, programs = shared_model(), []

    def watch(module, name):
        program = getattr(module, name)

        def traced(*arguments, **settings):
            programs.append(program.trace(*arguments, **settings).jaxpr)
            return program(*arguments, **settings)

        monkeypatch.setattr(module, name, traced)

    watch(decode, "_decode")
    watch(run, "beam_search")
    model.generate(**random_prompts(model.config, 0, ROWS), **NEW, **options)
    (program,) = programs
    assert [equation.primitive.name for equation in program.eqns].count("while") == 1
    assert "callback" not in str(program)


@pytest.mark.slow
def test_random_weights_are_made_on_a_mesh():
    mesh = make_mesh(data=8, fsdp=1)
    one, many = (IdeficsForVisionText2Text.from_config(config(), jax.random.key(0), mesh=m) for m in (None, mesh))
    batch = random_prompts(one.config, 0, 2)
    np.testing.assert_array_equal(many.generate(**batch, **NEW), one.generate(**batch, **NEW))


def test_decoding_copies_no_cache(monkeypatch):
    """Its scratch memory is a fraction of one layer's buffers: these are read where they lie, and written in place."""
    model, sizes = random_model(config(max_position_embeddings=4096)), []
    program = decode._decode

    def watched(model, images, cache, *arguments, **settings):
        compiled = program.lower(model, images, cache, *arguments, **settings).compile()
        layer = sum(x.nbytes for x in cache.self_attention[0][0])
        sizes.append((compiled.memory_analysis().temp_size_in_bytes, layer))
        return compiled(model, images, cache, *arguments)

    monkeypatch.setattr(decode, "_decode", watched)
    model.generate(**random_prompts(model.config, 0, 2), max_new_tokens=2000, eos_token_id=EOS)
    ((scratch, layer),) = sizes
    assert scratch < layer / 2
