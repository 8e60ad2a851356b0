"""Hugging Face checkpoints come in and go out bit for bit, in any form, on any mesh; bad ones give one sentence."""

import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from idefics_jax import IdeficsForVisionText2Text, IdeficsModel, make_mesh
from tests.support.disk import small_disk
from tests.support.make_checkpoint import SMALL
from tests.support.random_checkpoint import save_random_checkpoint

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
KINDS = {
    "published": {},
    "no resampler": {"use_resampler": False},
    "tied vectors": {"tie_word_embeddings": True, "alpha_type": "vector", "additional_vocab_size": 0},
}


def read(directory):
    """Every tensor of a checkpoint directory."""
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def cast(directory, dtype):
    """Stores the checkpoint's weights in another dtype, as its config then says."""
    save_file({name: tensor.astype(dtype) for name, tensor in read(directory).items()}, directory / SINGLE)
    change_config(directory, dtype=np.dtype(dtype).name)


def change_config(directory, **changes):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changes))


def assert_same_bits(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert ours[name].shape == tensor.shape, name
        assert ours[name].tobytes() == tensor.tobytes(), name


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """The same checkpoint in one file and in shards, each test's own to copy."""
    folder = tmp_path_factory.mktemp("originals")
    model = IdeficsForVisionText2Text.from_pretrained(save_random_checkpoint(folder / "checkpoint", SMALL))
    model.save_pretrained(folder / "shards", max_shard_size=80_000)
    return folder, model


@pytest.fixture
def original(originals):
    """The model that they are of."""
    return originals[1]


@pytest.fixture
def checkpoint(originals, tmp_path):
    return shutil.copytree(originals[0] / "checkpoint", tmp_path / "checkpoint")


@pytest.mark.parametrize(
    ("kind", "stacked"),
    [
        pytest.param(kind, stacked, marks=() if stacked == (kind == "published") else pytest.mark.slow)
        for kind, stacked in itertools.product(KINDS, (False, True))
    ],
)
def test_round_trip_is_bit_identical(kind, stacked, tmp_path):
    source = save_random_checkpoint(tmp_path / "source", KINDS[kind])
    IdeficsForVisionText2Text.from_pretrained(source, stacked=stacked).save_pretrained(tmp_path / "copy")
    assert_same_bits(read(tmp_path / "copy"), read(source))
    assert [path.name for path in sorted((tmp_path / "copy").iterdir())] == [
        "config.json",
        "generation_config.json",
        SINGLE,
    ]


@pytest.mark.parametrize(
    "dtype", [ml_dtypes.bfloat16, *(pytest.param(x, marks=pytest.mark.slow) for x in (np.float16, np.float32))]
)
def test_round_trip_in_every_dtype_and_in_shards(dtype, checkpoint, tmp_path):
    cast(checkpoint, dtype)
    model = IdeficsForVisionText2Text.from_pretrained(checkpoint, param_dtype=dtype)
    model.save_pretrained(tmp_path / "copy", max_shard_size=20_000)
    assert_same_bits(read(tmp_path / "copy"), read(checkpoint))
    index = json.loads((tmp_path / "copy" / INDEX).read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files == [f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)]
    assert len(files) > 3
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in read(checkpoint).values())
    again = IdeficsForVisionText2Text.from_pretrained(tmp_path / "copy", param_dtype=dtype)
    jax.tree.map(np.testing.assert_array_equal, again, model)


@pytest.mark.parametrize(
    ("stacked", "sizes"),
    [
        pytest.param(*pair, marks=() if pair in ((False, (1, 2, 4)), (True, (2, 2, 2))) else pytest.mark.slow)
        for pair in itertools.product((False, True), ((8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4)))
    ],
    ids=str,
)
def test_weights_load_onto_meshes_and_come_back(stacked, sizes, tmp_path):
    changes = {"vocab_size": 64, "vision_config": {"num_attention_heads": 4}}
    changes["perceiver_config"] = {"resampler_n_heads": 4}
    source = save_random_checkpoint(tmp_path / "source", changes)
    data, fsdp, tensor = sizes
    model = IdeficsForVisionText2Text.from_pretrained(source, mesh=make_mesh(data, fsdp, tensor), stacked=stacked)
    table = model.model.embedding.table[...]
    assert table.sharding.shard_shape(table.shape) == (64 // tensor, 32 // fsdp)
    model.save_pretrained(tmp_path / "copy")
    assert_same_bits(read(tmp_path / "copy"), read(source))


def test_the_dtype_of_computation_and_that_of_the_weights(checkpoint, caplog):
    def dtypes(**asked):
        model = IdeficsForVisionText2Text.from_pretrained(checkpoint, **asked)
        return model.config.dtype, jax.tree.leaves(model)[0].dtype.name

    assert dtypes() == ("float32", "float32")
    assert dtypes(dtype="bfloat16") == ("bfloat16", "bfloat16")
    assert dtypes(dtype=jnp.bfloat16, param_dtype="float32") == ("bfloat16", "float32")
    change_config(checkpoint, dtype="float16")
    assert dtypes() == ("bfloat16", "bfloat16")
    assert not caplog.records
    assert dtypes(dtype="float16") == ("float16", "float16")
    assert "80B overflows in float16" in caplog.text
    with pytest.raises(ValueError, match="computes in bfloat16, float32 or float16, not in int8"):
        dtypes(dtype="int8")


def test_stray_buffers_of_older_checkpoints_are_ignored(checkpoint, original):
    tensors = read(checkpoint)
    strays = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(4, np.float32),
        "model.vision_model.embeddings.position_ids": np.zeros((1, 17), np.int64),
        "model.layers.0.self_attn.mask": np.ones((2, 2), np.bool_),
        "model.layers.0.self_attn.rotary_emb.cos_cached": np.zeros((2, 2), np.float32),
    }
    save_file(tensors | strays, checkpoint / SINGLE)
    jax.tree.map(np.testing.assert_array_equal, IdeficsForVisionText2Text.from_pretrained(checkpoint), original)


@pytest.mark.parametrize(
    "prefix",
    [
        "base_model.model.",
        "module._orig_mod.",
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("module.", "_orig_mod.")),
    ],
)
def test_prefixes_of_wrappers_are_taken_off(checkpoint, original, prefix):
    tensors = read(checkpoint)
    save_file({prefix + name: tensor for name, tensor in tensors.items()}, checkpoint / SINGLE)
    jax.tree.map(np.testing.assert_array_equal, IdeficsForVisionText2Text.from_pretrained(checkpoint), original)
    first = next(iter(tensors))
    mixed = {name if name == first else prefix + name: tensor for name, tensor in tensors.items()}
    if not prefix.endswith("_orig_mod."):  # which torch.compile puts amid names too
        save_file(mixed, checkpoint / SINGLE)
        assert "Missing from" in refusal(checkpoint)


def test_a_single_file_goes_before_an_index_as_in_transformers(sharded, checkpoint):
    tensors = read(checkpoint)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, sharded / SINGLE)
    loaded = IdeficsForVisionText2Text.from_pretrained(sharded)
    np.testing.assert_array_equal(loaded.model.decoder.norm.scale[...], tensors["model.norm.weight"] + 1)


def test_the_copy_of_a_tied_head_is_ignored(tmp_path):
    source = save_random_checkpoint(tmp_path / "tied", {"tie_word_embeddings": True})
    tensors = read(source)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}, source / SINGLE)
    assert IdeficsForVisionText2Text.from_pretrained(source).head is None


def test_the_headless_model_loads_from_either_kind_of_checkpoint(checkpoint, tmp_path):
    whole = IdeficsModel.from_pretrained(checkpoint)
    whole.save_pretrained(tmp_path / "headless")
    names = {name.removeprefix("model.") for name in read(checkpoint) if not name.startswith("lm_head.")}
    assert read(tmp_path / "headless").keys() == names
    alone = IdeficsModel.from_pretrained(tmp_path / "headless")
    jax.tree.map(np.testing.assert_array_equal, whole, alone)


@pytest.mark.torch
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
def test_transformers_loads_what_we_save_with_nothing_missing(kind, dtype, tmp_path):
    torch = pytest.importorskip("torch")
    import transformers

    source = save_random_checkpoint(tmp_path / "source", KINDS[kind])
    model = IdeficsForVisionText2Text.from_pretrained(source, dtype=dtype, stacked=True)
    for name, cls, ours in (
        ("whole", transformers.IdeficsForVisionText2Text, model),
        ("headless", transformers.IdeficsModel, IdeficsModel.from_pretrained(source, dtype=dtype)),
    ):
        ours.save_pretrained(tmp_path / name, max_shard_size=30_000)
        theirs, report = cls.from_pretrained(tmp_path / name, dtype="auto", output_loading_info=True)
        assert not any(report.values()), report
        assert theirs.dtype == getattr(torch, dtype)
        state, saved = theirs.state_dict(), read(tmp_path / name)
        for key, tensor in saved.items():
            np.testing.assert_array_equal(state[key].float().numpy(), tensor.astype(np.float32))


@pytest.mark.torch
def test_what_transformers_saves_loads(tmp_path):
    pytest.importorskip("torch")
    import transformers

    theirs = transformers.IdeficsForVisionText2Text.from_pretrained(save_random_checkpoint(tmp_path / "source"))
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="30KB")
    model = IdeficsForVisionText2Text.from_pretrained(tmp_path / "theirs")
    expected = IdeficsForVisionText2Text.from_pretrained(tmp_path / "source")
    jax.tree.map(np.testing.assert_array_equal, model, expected)


def test_saving_over_an_older_checkpoint_leaves_none_of_it(original, tmp_path):
    target = tmp_path / "target"
    original.save_pretrained(target, max_shard_size=20_000)
    (target / "tokenizer.json").write_text("{}")
    original.save_pretrained(target)
    assert sorted(path.name for path in target.iterdir()) == [
        "config.json",
        "generation_config.json",
        SINGLE,
        "tokenizer.json",
    ]


def test_a_failed_save_leaves_the_older_checkpoint_whole(checkpoint, original):
    """As on a full disk: the operating system refuses to write more than some bytes into a file."""
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"checkpoint could not be written: .*File too large.*; nothing in it"):
            original.save_pretrained(checkpoint)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == before


def test_a_full_disk_leaves_the_older_checkpoint_whole(checkpoint, tmp_path):
    model = IdeficsForVisionText2Text.from_pretrained(checkpoint)
    with small_disk(tmp_path / "disk", 3 * 2**20) as disk:
        saved = disk.path / "saved"
        shutil.copytree(checkpoint, saved)
        before = {path.name: path.read_bytes() for path in saved.iterdir()}
        disk.fill(20_000)
        with pytest.raises(OSError, match=r"disk/saved could not be written: No space left on device .*; nothing in"):
            model.save_pretrained(saved)
        assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
        disk.empty()
        model.save_pretrained(saved)
        assert_same_bits(read(saved), read(checkpoint))


# Bad checkpoints


def refusal(directory, error=ValueError):
    """The one line of the error that loading `directory` gives."""
    with pytest.raises(error) as caught:
        IdeficsForVisionText2Text.from_pretrained(directory)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def sharded(originals, tmp_path):
    return shutil.copytree(originals[0] / "shards", tmp_path / "shards")


def shards(directory):
    return sorted(directory.glob("model-*.safetensors"))


def change_index(directory, change):
    index = json.loads((directory / INDEX).read_text())
    change(index["weight_map"])
    (directory / INDEX).write_text(json.dumps(index))


def test_no_such_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "no/such/path is not a directory, and no checkpoint of that name" in refusal(
        "no/such/path", FileNotFoundError
    )
    assert "config.json" in refusal(tmp_path, FileNotFoundError)


def test_no_weights(checkpoint):
    (checkpoint / SINGLE).unlink()
    message = f"has neither {SINGLE} nor {INDEX}, nor pytorch_model.bin or its index; is it a checkpoint?"
    assert message in refusal(checkpoint, FileNotFoundError)


def test_a_missing_shard(sharded):
    shards(sharded)[1].unlink()
    assert "model-00002-of-" in refusal(sharded, FileNotFoundError)


@pytest.mark.parametrize("kept", [0, 4, 100, -1, -50_000])
def test_a_truncated_shard(sharded, kept):
    shard = shards(sharded)[1]
    shard.write_bytes(shard.read_bytes()[:kept])
    assert f"{shard} is cut off" in refusal(sharded)


def test_a_damaged_header(checkpoint):
    content = bytearray((checkpoint / SINGLE).read_bytes())
    content[20:24] = b"\xff\xff\xff\xff"
    (checkpoint / SINGLE).write_bytes(content)
    assert "The header of" in refusal(checkpoint)


def test_an_index_that_leads_out_of_its_directory(sharded):
    for file in ("../outside.safetensors", "/etc/passwd"):
        change_index(sharded, lambda files, file=file: files.update({"lm_head.weight": file}))
        assert f"names {file}, outside its own directory" in refusal(sharded)


def test_an_index_that_disagrees_with_its_shards(sharded):
    first, second = (path.name for path in shards(sharded)[:2])
    change_index(sharded, lambda files: files.update({next(n for n, f in files.items() if f == first): second}))
    assert "it is not; download both again" in refusal(sharded)


def test_a_tensor_in_two_shards(sharded):
    first, second = shards(sharded)[:2]
    save_file(load_file(first) | load_file(second), second)
    assert f"is in both {first.name} and {second.name}" in refusal(sharded)


def test_an_index_that_is_not_one(sharded):
    (sharded / INDEX).write_text('{"weights": ')
    assert f"{INDEX} is not valid JSON" in refusal(sharded)
    (sharded / INDEX).write_text('{"weights": {}}')
    assert f"{INDEX} is not an index of weights" in refusal(sharded)


def test_missing_unknown_and_misshaped_tensors(checkpoint):
    tensors = read(checkpoint)
    gone = tensors.pop("model.norm.weight")
    save_file(tensors, checkpoint / SINGLE)
    assert refusal(checkpoint).startswith(f"Missing from {checkpoint}: model.norm.weight (1 tensors in all)")
    save_file(tensors | {"model.norm.weight": gone, "model.lora.weight": gone}, checkpoint / SINGLE)
    assert refusal(checkpoint).startswith(f"Unknown in {checkpoint}: model.lora.weight (1 tensors in all)")
    save_file(tensors | {"model.norm.weight": gone[:-1]}, checkpoint / SINGLE)
    assert "model.norm.weight in" in refusal(checkpoint)
    assert "has shape (31,); the config wants (32,)" in refusal(checkpoint)


def test_a_tensor_of_another_kind_of_number(checkpoint):
    tensors = read(checkpoint)
    save_file(tensors | {"model.norm.weight": np.ones(32, np.int8)}, checkpoint / SINGLE)
    assert "model.norm.weight in" in refusal(checkpoint)
    assert "has dtype int8; weights must be one of" in refusal(checkpoint)


def test_a_config_that_disagrees_with_the_weights(checkpoint):
    change_config(checkpoint, num_hidden_layers=6)
    assert "Missing from" in refusal(checkpoint)
    change_config(checkpoint, num_hidden_layers=1)
    assert "Unknown in" in refusal(checkpoint)
    change_config(checkpoint, num_hidden_layers=2, hidden_act="swish7")
    assert "swish7" in refusal(checkpoint)


MEMORY = """
import sys, threading, time
import jax
from idefics_jax import IdeficsForVisionText2Text, make_mesh

def held():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

def watch():
    global most
    while True:
        most = max(most, held())
        time.sleep(0.002)

mesh = make_mesh(fsdp=4, tensor=2)
jax.block_until_ready(jax.numpy.ones(8))
before = most = held()
threading.Thread(target=watch, daemon=True).start()
model = jax.block_until_ready(IdeficsForVisionText2Text.from_pretrained(sys.argv[1], mesh=mesh))
print(most - before, sum(leaf.nbytes for leaf in jax.tree.leaves(model)))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's account of memory")
def test_little_is_held_beside_the_weights_while_they_load_onto_a_mesh(tmp_path):
    """Anonymous memory, in which the CPU devices' weights lie too; the memory-mapped files are not of it."""
    sizes = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8}
    checkpoint = save_random_checkpoint(tmp_path, sizes)
    printed = subprocess.run([sys.executable, "-c", MEMORY, checkpoint], check=True, capture_output=True, text=True)
    held, weights = map(int, printed.stdout.split())
    assert weights > 3e8
    assert held < 1.15 * weights
