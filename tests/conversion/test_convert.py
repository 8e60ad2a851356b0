"""Whatever goes in comes out bit for bit, for Orbax, transformers and ourselves to load."""

import argparse
import json
from itertools import product

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from conversion import targets
from conversion.convert import HELD_BYTES, most_held
from conversion.source import open_checkpoint
from idefics_jax import IdeficsForVisionText2Text, IdeficsModel, IdeficsProcessor, make_mesh
from idefics_jax.parallel.memory import FREE_GB
from tests.support.conversion import as_bin, assert_same_bits, change_config, contents, converted, read_all, store
from tests.support.random_checkpoint import save_random_checkpoint

KINDS = {
    "published": {},
    "no resampler": {"use_resampler": False},
    "tied vectors": {"tie_word_embeddings": True, "alpha_type": "vector", "additional_vocab_size": 0},
    "every layer": {"cross_layer_interval": 1, "qk_layer_norms": False},
}
DTYPES = [np.float32, ml_dtypes.bfloat16, np.float16, np.float64]


def cast(directory, dtype):
    tensors = {name: tensor.astype(dtype) for name, tensor in read_all(directory).items()}
    if dtype == np.float64:  # which the safetensors package writes, and no config names
        change_config(directory, dtype="float32")
    else:
        change_config(directory, dtype=np.dtype(dtype).name)
    store(directory, tensors)
    return tensors


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        pytest.param(kind, dtype, marks=() if number == place else pytest.mark.slow)
        for (number, kind), (place, dtype) in product(enumerate(KINDS), enumerate(DTYPES))
    ],
)
def test_there_and_back_is_bit_identical(conversion, tmp_path, small_units, kind, dtype):
    source = save_random_checkpoint(tmp_path / "source", KINDS[kind])
    tensors = cast(source, dtype)
    conversion("convert", source, tmp_path / "orbax")
    assert_same_bits(read_all(tmp_path / "orbax"), tensors)
    conversion("convert", tmp_path / "orbax", tmp_path / "back", "--to", "safetensors", "--max-shard-size", "30KB")
    assert len(list((tmp_path / "back").glob("model-*.safetensors"))) > 3
    assert_same_bits(read_all(tmp_path / "back"), tensors)
    assert (tmp_path / "back" / "config.json").read_bytes() == (source / "config.json").read_bytes()


def test_the_files_beside_the_weights_go_along(conversion, published, tmp_path):
    conversion("convert", published, tmp_path / "orbax")
    conversion("convert", tmp_path / "orbax", tmp_path / "back", "--to", "safetensors")
    before, after = contents(published), contents(tmp_path / "back")
    assert after.keys() - before.keys() == {"manifest.json", "model.safetensors"}
    assert all(after[name] == before[name] for name in after.keys() & before.keys())
    assert IdeficsProcessor.from_pretrained(tmp_path / "orbax")("User:")["input_ids"].size


def test_norms_may_have_another_dtype_but_layers_of_one_kind_not(conversion, checkpoint, tmp_path):
    tensors = {
        name: tensor if "norm" in name else tensor.astype(np.float16) for name, tensor in read_all(checkpoint).items()
    }
    store(checkpoint, tensors)
    conversion("convert", checkpoint, tmp_path / "orbax")
    assert_same_bits(read_all(tmp_path / "orbax"), tensors)
    name = "model.layers.2.mlp.up_proj.weight"
    store(checkpoint, tensors | {name: tensors[name].astype(np.float32)})
    assert f"{name} float32, but they lie in one array; choose a --dtype" in conversion(
        "convert", checkpoint, tmp_path / "other", status=1
    )
    conversion("convert", checkpoint, tmp_path / "files", "--to", "safetensors")
    conversion("convert", checkpoint, tmp_path / "one", "--dtype", "float32")


def test_the_headless_model(conversion, checkpoint, tmp_path):
    source, expected = tmp_path / "headless", IdeficsModel.from_pretrained(checkpoint)
    expected.save_pretrained(source)
    conversion("convert", source, tmp_path / "orbax")
    assert_same_bits(read_all(tmp_path / "orbax"), read_all(source))
    jax.tree.map(np.testing.assert_array_equal, IdeficsModel.from_pretrained(tmp_path / "orbax"), expected)
    conversion("convert", tmp_path / "orbax", tmp_path / "back", "--to", "safetensors")
    assert_same_bits(read_all(tmp_path / "back"), read_all(source))


@pytest.mark.parametrize(
    "asked", ["bfloat16", *(pytest.param(x, marks=pytest.mark.slow) for x in ("float16", "float32"))]
)
def test_another_dtype(conversion, checkpoint, tmp_path, asked):
    expected = {name: tensor.astype(asked) for name, tensor in read_all(checkpoint).items()}
    for form in ("orbax", "safetensors"):
        conversion("convert", checkpoint, tmp_path / form, "--to", form, "--dtype", asked)
        assert_same_bits(read_all(tmp_path / form), expected)
        assert IdeficsForVisionText2Text.from_pretrained(tmp_path / form, dtype="float32").config.dtype == "float32"
        assert json.loads((tmp_path / form / "config.json").read_text())["torch_dtype"] == asked
        assert "same once rounded" in conversion("verify", checkpoint, tmp_path / form) or asked == "float32"


# `.bin`


@pytest.mark.parametrize("shards", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_bin_gives_what_safetensors_gives(conversion, checkpoint, tmp_path, shards):
    conversion("convert", checkpoint, tmp_path / "from safetensors")
    expected = as_bin(checkpoint, shards)
    conversion("convert", checkpoint, tmp_path / "from bin")
    assert_same_bits(read_all(tmp_path / "from bin"), expected)
    assert_same_bits(read_all(tmp_path / "from bin"), read_all(tmp_path / "from safetensors"))
    assert_same_bits(read_all(checkpoint), expected)
    jax.tree.map(
        np.testing.assert_array_equal,
        IdeficsForVisionText2Text.from_pretrained(checkpoint),
        IdeficsForVisionText2Text.from_pretrained(tmp_path / "from safetensors"),
    )


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_bin_files_that_torch_wrote(conversion, checkpoint, tmp_path, dtype):
    torch = pytest.importorskip("torch")
    import transformers

    model = transformers.IdeficsForVisionText2Text.from_pretrained(checkpoint, dtype=getattr(torch, dtype))
    for name in ("bin", "safetensors"):
        model.config.save_pretrained(tmp_path / name)
    model.save_pretrained(tmp_path / "safetensors")
    torch.save(model.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    conversion("convert", tmp_path / "bin", tmp_path / "orbax")
    assert_same_bits(read_all(tmp_path / "orbax"), read_all(tmp_path / "safetensors"))


# Who can load it


def nested(model):
    """A model's leaves as the nested dictionaries that its Orbax checkpoint holds."""
    tree = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(model)[0]:
        *parents, last = [key.name for key in keys[:-1]]
        inner = tree
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = leaf
    return tree


@pytest.fixture(scope="module")
def in_small_units(meshed, tmp_path_factory):
    """A checkpoint, and what it converts to where a unit has few kilobytes."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(targets, "UNIT_BYTES", 2**13)
        return meshed[0], converted(meshed[0], tmp_path_factory.mktemp("small units") / "orbax")


MESHES = [None, (2, 2, 2), *(pytest.param(x, marks=pytest.mark.slow) for x in [(8, 1, 1), (1, 8, 1), (1, 2, 4)])]


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_orbax_itself_restores_it_onto_any_mesh(in_small_units, sizes):
    source, orbax = in_small_units
    mesh = sizes and make_mesh(*sizes)
    expected = IdeficsForVisionText2Text.from_pretrained(source, mesh=mesh, stacked=True)
    abstract = nested(IdeficsForVisionText2Text.abstract(expected.config, mesh=mesh, stacked=True))
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(orbax / "params", abstract)
    jax.tree.map(np.testing.assert_array_equal, restored, nested(expected))
    if mesh:
        assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(lambda x: x.sharding, abstract)


@pytest.mark.parametrize(
    ("sizes", "stacked"),
    [
        pytest.param(*pair, marks=() if pair in ((None, False), ((2, 2, 2), True)) else pytest.mark.slow)
        for pair in product((None, (2, 2, 2), (1, 8, 1)), (False, True))
    ],
    ids=str,
)
def test_from_pretrained_loads_it_in_any_form(meshed, stacked, sizes):
    mesh = sizes and make_mesh(*sizes)
    ours, expected = (
        IdeficsForVisionText2Text.from_pretrained(path, mesh=mesh, stacked=stacked) for path in reversed(meshed)
    )
    jax.tree.map(np.testing.assert_array_equal, ours, expected)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert one.sharding == other.sharding


def test_what_orbax_saved_from_a_mesh_converts(conversion, meshed, tmp_path):
    """As training will: written by Orbax, in its own chunks, compressed, every device its shard."""
    source, _ = meshed
    model = IdeficsForVisionText2Text.from_pretrained(source, mesh=make_mesh(1, 2, 4), stacked=True)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "orbax" / "params", nested(model))
    (tmp_path / "orbax" / "config.json").write_bytes((source / "config.json").read_bytes())
    conversion("convert", tmp_path / "orbax", tmp_path / "back", "--to", "safetensors")
    assert_same_bits(read_all(tmp_path / "back"), read_all(source))


@pytest.mark.torch
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_loads_the_export_with_nothing_missing(conversion, tmp_path, kind):
    pytest.importorskip("torch")
    import transformers

    source = save_random_checkpoint(tmp_path / "source", KINDS[kind])
    conversion("convert", source, tmp_path / "orbax", "--dtype", "bfloat16")
    conversion("convert", tmp_path / "orbax", tmp_path / "back", "--to", "safetensors", "--max-shard-size", "40KB")
    theirs, report = transformers.IdeficsForVisionText2Text.from_pretrained(
        tmp_path / "back", dtype="auto", output_loading_info=True
    )
    assert not any(report.values()), report
    state = theirs.state_dict()
    for name, tensor in read_all(tmp_path / "back").items():
        assert str(state[name].dtype) == "torch.bfloat16"
        np.testing.assert_array_equal(state[name].float().numpy(), tensor.astype(np.float32))


# What it says


def test_the_plan_is_made_without_writing(conversion, published, tmp_path):
    out = conversion("convert", published, tmp_path / "out", "--to", "safetensors", "--dry-run", "--dtype", "float32")
    assert list(tmp_path.iterdir()) == []
    assert "91 tensors, 950.8 kB, 2 files" in out
    assert "1.9 MB in 1 safetensors files" in out
    assert "model.vision_model.embeddings.patch_embedding.weight, 188.2 kB" in out


def test_tensors_that_hold_nothing_are_left_out_and_named(conversion, checkpoint, tmp_path, capsys):
    tensors, stray = read_all(checkpoint), "model.layers.0.self_attn.rotary_emb.inv_freq"
    store(checkpoint, tensors | {stray: np.zeros(4, np.float32)})
    from conversion.cli import main

    assert main(["convert", str(checkpoint), str(tmp_path / "out")]) == 0
    assert f"Left out, since it holds nothing to load: {stray}" in capsys.readouterr().err
    assert_same_bits(read_all(tmp_path / "out"), tensors)


def test_inspect_adds_up(conversion, published, published_orbax):
    for path, form in ((published, "safetensors"), (published_orbax, "orbax")):
        out = conversion("inspect", path)
        assert f": {form}, " in out
        rows = {line[:16].strip(): line[16:].split() for line in out.splitlines()[3:]}
        parts = ["vision", "resampler", "cross-attention", "text", "embeddings"]
        assert list(rows) == [*parts, "total"]
        for column in (0, 1):
            numbers = {name: int(row[column].replace(",", "")) for name, row in rows.items()}
            assert sum(numbers[part] for part in parts) == numbers["total"]
        tensors = read_all(path)
        assert rows["total"][:2] == [f"{len(tensors):,}", f"{sum(tensor.size for tensor in tensors.values()):,}"]
        lines = conversion("inspect", path, "--tensors").splitlines()
        assert len(lines) == 1 + len(tensors)
        line = next(line for line in lines if line.startswith("model.layers.1.self_attn.q_proj.weight"))
        assert line.split()[1:] == [
            "bfloat16", "64x64", "8.2", "kB", "model/decoder/groups/layers/attention/q/kernel[1,0]"
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--to", "safetensors", "--dtype", "float32"), "needs 0.2 MB of memory (0.2 MB for copies of its largest"),
        (("--to", "orbax"), "needs 1.0 MB of memory (1.0 MB for copies of its largest tensors), and 0.1 MB are free"),
    ],
    ids=["cast", "orbax"],
)
def test_a_conversion_is_refused_whose_copies_do_not_fit(options, parts, conversion, published, tmp_path, monkeypatch):
    monkeypatch.setenv(FREE_GB, "0.0001")
    assert parts in conversion("convert", published, tmp_path / "out", *options, status=1)
    assert list(tmp_path.iterdir()) == []


def test_little_free_memory_means_fewer_tensors_in_hand(conversion, published, tmp_path, monkeypatch):
    """What is copied as it is needs none beside the pages of its files."""
    monkeypatch.setenv(FREE_GB, "0")
    conversion("convert", published, tmp_path / "out", "--to", "safetensors")
    assert_same_bits(read_all(tmp_path / "out"), read_all(published))
    source = open_checkpoint(published)
    target = targets.SafetensorsTarget(tmp_path, source.kinds, 2**20)
    largest = max(tensor.nbytes for tensor in source.tensors.values())
    for free, most in ((0, largest), (10**9, 10**9), (10**12, HELD_BYTES), (None, HELD_BYTES)):
        assert most_held(source, target, source.kinds, argparse.Namespace(dtype=None, to="safetensors"), free) == most
