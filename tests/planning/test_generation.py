"""`--plan` of generation: the programs that are planned are those that run, on any mesh."""

import jax
import numpy as np
import pytest

from idefics_jax.generation import decode, prefill, run
from idefics_jax.parallel.mesh import make_mesh
from idefics_jax.planning.generation import plan_generation
from idefics_jax.planning.lowering import lower
from tests.reference.generation import config, random_model, random_prompts


@pytest.fixture
def ran(monkeypatch):
    """The programs that `generate` calls, as text, by the names that plans have for them."""
    programs: dict[str, list[str]] = {"images": [], "prefill": [], "decode": []}

    def watch(module, attribute, name):
        program = getattr(module, attribute)

        def lowered(*arguments, **settings):
            programs[name].append(program.lower(*arguments, **settings).as_text())
            return program(*arguments, **settings)

        monkeypatch.setattr(module, attribute, lowered)

    watch(prefill, "_read_images", "images")
    watch(run, "prefill", "prefill")
    watch(decode, "_decode", "decode")
    return programs


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        pytest.param((1, 4, 2), {}, marks=pytest.mark.slow),
        ((2, 2, 2), {"do_sample": True, "num_return_sequences": 2, "bad_words_ids": [[7, 8]]}),
        ((1, 1, 1), {}),
    ],
    ids=str,
)
def test_what_is_planned_is_what_runs(sizes, options, ran):
    settings = config()
    mesh = make_mesh(*sizes, devices=jax.devices()[: np.prod(sizes)])
    model = random_model(settings, mesh=mesh)
    prompts = random_prompts(settings, 0, 3, images=(1, 3))
    model.generate(**prompts, max_new_tokens=5, eos_token_id=(), **options)
    copies = options.get("num_return_sequences", 1)
    call = lower(
        settings,
        mesh,
        prompts,
        max_new_tokens=5,
        do_sample=options.get("do_sample", False),
        copies=copies,
        bad_words_ids=options.get("bad_words_ids", ()),
    )
    planned = {name: [] for name in ran}
    for program in call.programs:
        planned[program.name] += [program.lowered.as_text()] * (1 if program.name == "decode" else program.runs)
    assert planned == ran
    assert call.answers >= 3 * copies
    assert call.images == sum(1 for row in prompts["image_attention_mask"] for image in row.any(axis=0) if image)


@pytest.mark.slow
def test_a_plan_of_a_pod():
    pytest.importorskip("libtpu")
    settings = config(dtype="bfloat16")
    mesh = {"data": 1, "fsdp": 4, "tensor": 2}
    prompts = random_prompts(settings, 0, 8, images=(2, 2))
    plan = plan_generation(settings, prompts, topology="v5e:2x4", slices=1, mesh=mesh, max_new_tokens=9)
    assert plan.fits
    assert (plan.devices, plan.answers, plan.images) == (8, 8, 16)
    assert plan.decoding.runs == 8
    assert 0 < plan.reading_mfu < 1
    assert {each.component for each in plan.decoding.compiled.cost.collectives} >= {"self_attention", "mlp", "head"}
    assert all(program.compiled.cost.unknown_loops == () for program in plan.programs)
