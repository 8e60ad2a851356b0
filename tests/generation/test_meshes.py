"""Generation over a mesh: one device's tokens on any mesh, and in two processes that each have prompts of their own."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from idefics_jax import POCKET, IdeficsForVisionText2Text, IdeficsPerceiverConfig, IdeficsVisionConfig, make_mesh
from idefics_jax.generation import decode
from idefics_jax.parallel.memory import FREE_GB, Request, request_needs, weight_needs
from tests.reference.generation import EOS, config, random_model, random_prompts
from tests.support.train_runs import free_port

NEW = {"max_new_tokens": 12, "eos_token_id": EOS}
DRAWS = {"do_sample": True, "temperature": 2.0, "num_return_sequences": 2, "seed": 3}
MESHES = [(8, 1, 1), (2, 4, 1), (1, 2, 4), (1, 1, 8), (2, 2, 2)]
MOVING = [(2, 1, 4), (1, 2, 4), (1, 8, 1)]


def by_default(chosen, meshes):
    """The meshes as parameters, of which the default run takes `chosen` alone."""
    return [pytest.param(sizes, id=str(sizes), marks=() if sizes == chosen else pytest.mark.slow) for sizes in meshes]


def wide_config(**changes):
    """Every axis that a mesh splits is divisible by 8, if no change makes it otherwise."""
    perceiver = IdeficsPerceiverConfig(
        resampler_n_latents=4,
        resampler_depth=1,
        resampler_n_heads=8,
        resampler_head_dim=8,
        qk_layer_norms_perceiver=True,
    )
    vision = IdeficsVisionConfig(
        embed_dim=32, image_size=28, intermediate_size=64, num_hidden_layers=1, num_attention_heads=8
    )
    return config(num_attention_heads=8, vision_config=vision, perceiver_config=perceiver, **changes)


@pytest.fixture(scope="module")
def model():
    return random_model(wide_config())


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(directory)
    return directory


class Streamer:
    """Keeps what it is given."""

    def __init__(self):
        self.calls, self.ended = [], False

    def put(self, tokens):
        self.calls.append(np.asarray(tokens))

    def end(self):
        self.ended = True


def streamed(model, batch, **options):
    """The tokens, as a streamer gets them."""
    streamer = Streamer()
    model.generate(**batch, **options, streamer=streamer)
    assert streamer.ended
    return np.concatenate([streamer.calls[0], np.stack(streamer.calls[1:], axis=1)], axis=1)


@pytest.mark.parametrize("sizes", by_default((1, 2, 4), sorted({*MESHES, *MOVING})))
def test_tokens_are_one_devices_and_decoding_moves_neither_weights_nor_caches(sizes, model, checkpoint, monkeypatch):
    """These are used where they are: whatever moves is smaller than any weight's part."""
    sharded = IdeficsForVisionText2Text.from_pretrained(checkpoint, mesh=make_mesh(*sizes))
    assert any(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(sharded))
    program, moved, (data, fsdp, tensor) = decode._decode, [], sizes
    batch = random_prompts(model.config, 0, data * fsdp, lengths=(3, 60), images=(0, 9))
    expected = model.generate(**batch, **NEW)

    def watched(model, images, cache, *arguments, **settings):
        for buffer in jax.tree.leaves((images, cache.self_attention)):
            assert buffer.sharding.shard_shape(buffer.shape)[:2] == (buffer.shape[0] // (data * fsdp), 8 // tensor)
        compiled = program.lower(model, images, cache, *arguments, **settings).compile()
        text = compiled.as_text() or ""
        for result in re.findall(r" = (.*?) (?:all-gather|all-to-all|collective-permute)(?:-start)?\(", text):
            moved.extend(math.prod(map(int, shape.split(","))) for shape in re.findall(r"\[([\d,]+)\]", result))
        return compiled(model, images, cache, *arguments)

    monkeypatch.setattr(decode, "_decode", watched)
    np.testing.assert_array_equal(sharded.generate(**batch, **NEW), expected)
    kernels = [leaf for leaf in jax.tree.leaves(sharded.model.decoder) if leaf.ndim > 1]
    if sizes in MOVING:
        assert moved
        assert max(moved) < min(kernel.size // tensor for kernel in kernels)


@pytest.mark.slow
def test_the_pocket_model_says_the_same_where_its_vocabulary_does_not_divide():
    alone = IdeficsForVisionText2Text.from_pretrained(POCKET, dtype="float32")
    assert alone.config.vocab_size % 4
    spread = IdeficsForVisionText2Text.from_pretrained(POCKET, dtype="float32", mesh=make_mesh(1, 2, 4))
    batch = random_prompts(alone.config, 0, 3, lengths=(3, 20), images=(0, 2))
    expected = alone.generate(**batch, max_new_tokens=6)
    np.testing.assert_array_equal(spread.generate(**batch, max_new_tokens=6), expected)


@pytest.mark.parametrize("sizes", by_default((2, 2, 2), MESHES))
def test_beams_and_conversations_are_the_same_on_every_mesh(sizes):
    """Here no mesh but one of data alone divides the vocabulary."""
    model, sharded = (random_model(wide_config(vocab_size=97), mesh=m) for m in (None, make_mesh(*sizes)))
    batch, turn = (random_prompts(model.config, seed, 3, images=(0, 4)) for seed in (1, 2))
    beams = {"num_beams": 3, "num_return_sequences": 2}
    expected = model.generate(**batch, **NEW, **beams)
    np.testing.assert_array_equal(sharded.generate(**batch, **NEW, **beams), expected)
    ours, theirs = (m.generate(**batch, **NEW, return_dict_in_generate=True).cache for m in (sharded, model))
    expected = model.generate(**turn, **NEW, cache=theirs)
    np.testing.assert_array_equal(sharded.generate(**turn, **NEW, cache=ours), expected)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_draws_and_streams_are_the_same_on_every_mesh(sizes):
    model, sharded = (random_model(wide_config(vocab_size=97), mesh=m) for m in (None, make_mesh(*sizes)))
    batch = random_prompts(model.config, 1, 3, images=(0, 4))
    expected = model.generate(**batch, **NEW, **DRAWS)
    np.testing.assert_array_equal(sharded.generate(**batch, **NEW, **DRAWS), expected)
    np.testing.assert_array_equal(streamed(sharded, batch, **NEW), streamed(model, batch, **NEW))


# Two processes.

#: Prompts of each process: unequal numbers, lengths and images.
GIVEN = [(3, (3, 60), (0, 9)), (1, (3, 20), (1, 2))]
NONE = {"input_ids": np.zeros((0, 1), np.int32)}


def prompts(process, seed):
    rows, lengths, images = GIVEN[process]
    return random_prompts(wide_config(), 10 * seed + process, rows, lengths, images)


def answers(model, process):
    """What a process asks in turn, and gets: the same as on one device, where no other asks at the same time."""
    batches = [prompts(process, seed) for seed in range(4)]
    first = model.generate(**batches[0], **NEW, return_dict_in_generate=True)
    text = {name: batches[3][name] for name in ("input_ids", "attention_mask")}
    return {
        "greedy": first.sequences,
        "turn": model.generate(**batches[1], **NEW, cache=first.cache),
        "beams": model.generate(**batches[2], **NEW, num_beams=3),
        "streamed": streamed(model, batches[1], **NEW),
        "without images": model.generate(**text, **NEW),
    }


def joined(batches):
    """Left-padded batches as one."""
    shapes = {name: np.max([batch[name].shape[1:] for batch in batches], axis=0) for name in batches[0]}

    def padded(name, array):
        missing = [int(most - size) for most, size in zip(shapes[name], array.shape[1:], strict=True)]
        left = [name != "pixel_values", *[False] * (len(missing) - 1)]
        return np.pad(array, ((0, 0), *[(n, 0) if first else (0, n) for n, first in zip(missing, left, strict=True)]))

    return {name: np.concatenate([padded(name, batch[name]) for batch in batches]) for name in batches[0]}


def errors(model, process):
    """What a process is told where the other one's prompts or settings do not fit."""
    found = {}
    for name, own in {
        "other": {"input_ids": [[3, 4]]} if process == 0 else {"input_ids": [[3, 1000]]},
        "settings": {"input_ids": [[3, 4]], "max_new_tokens": 3 + process},
        "memory": {"input_ids": [[3, 4]]},
    }.items():
        if name == "memory" and process == 1:
            os.environ[FREE_GB] = "0"
        try:
            model.generate(**own)
        except ValueError as error:
            found[name] = np.array(str(error))
        os.environ.pop(FREE_GB, None)
    return found


def needs(config, mesh):
    """Bytes of the weights and of a call, on the devices of a mesh that are this process's."""
    shapes = IdeficsForVisionText2Text.abstract(config, mesh=mesh)
    asked = request_needs(shapes, mesh, Request(prompts=8, answers=16, tokens=32, slots=64, image_slots=16))
    return list((weight_needs(shapes, mesh) | asked).values())


def run_process(coordinator, process, mesh, checkpoint, out):
    jax.distributed.initialize(coordinator, 2, int(process))
    data, fsdp, tensor = (int(size) for size in mesh.split(","))
    model = IdeficsForVisionText2Text.from_pretrained(checkpoint, mesh=make_mesh(data, fsdp, tensor))
    leaves = jax.tree.leaves(model)
    assert not any(leaf.is_fully_addressable for leaf in leaves)
    results = answers(model, int(process)) | errors(model, int(process))
    results["needs"] = needs(model.config, make_mesh(data, fsdp, tensor))
    results["draws"] = model.generate(**prompts(int(process), 2), **NEW, **DRAWS)
    results["process 0 alone"] = model.generate(**(prompts(0, 0) if process == "0" else NONE), **NEW)
    np.savez(out, **results)
    jax.distributed.shutdown()


def start(process, coordinator, mesh, checkpoint, out):
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    arguments = [coordinator, str(process), ",".join(map(str, mesh)), str(checkpoint), str(out)]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.generation.test_meshes", *arguments],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(8, 1, 1), (2, 2, 2), (1, 1, 8)], ids=str)
def test_two_processes_with_prompts_of_their_own(mesh, model, checkpoint, tmp_path):
    coordinator = f"127.0.0.1:{free_port()}"
    files = [tmp_path / f"{process}.npz" for process in range(2)]
    processes = [start(process, coordinator, mesh, checkpoint, file) for process, file in enumerate(files)]
    try:
        printed = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(printed)
    got = [dict(np.load(file)) for file in files]
    for process in range(2):
        for name, expected in answers(model, process).items():
            np.testing.assert_array_equal(got[process][name], expected, err_msg=f"process {process}, {name}")
        told = str(got[process]["other"])
        assert ("Process 1 cannot take part: " in told) == (process == 0)
        assert "input_ids hold 1000, but the model's tokens are 0 to 98" in told
        assert ("Process 1 cannot take part: " in str(got[process]["memory"])) == (process == 0)
        assert "0.0 MB are free on this machine" in str(got[process]["memory"])
        assert [2 * need for need in got[process]["needs"]] == needs(model.config, make_mesh(*mesh))
        assert str(got[process]["settings"]) == "All processes must give the same settings of generate; they differ."
    np.testing.assert_array_equal(got[0]["process 0 alone"], got[0]["greedy"])
    assert got[1]["process 0 alone"].shape == (0, 1)
    # Draws are those of one batch.
    batch = joined([prompts(process, 2) for process in range(2)])
    expected = model.generate(**batch, **NEW, **DRAWS)[:, batch["input_ids"].shape[1] :]
    rows = DRAWS["num_return_sequences"] * GIVEN[0][0]
    for process, own in enumerate((expected[:rows], expected[rows:])):
        new = got[process]["draws"][:, prompts(process, 2)["input_ids"].shape[1] :]
        np.testing.assert_array_equal(new, own[:, : new.shape[1]])
        assert not own[:, new.shape[1] :].any()


if __name__ == "__main__":
    run_process(*sys.argv[1:])
