"""Bad sources: one sentence that names file and tensor, status 1, the source untouched, no output."""

import json
import pickle
import re
import shutil

import numpy as np
import pytest
import tensorstore as ts
from safetensors.numpy import load_file, save_file

from idefics_jax.checkpoints.orbax_io import _CONTEXT, _database
from tests.support.conversion import as_bin, change_config, contents
from tests.support.torch_archive import save_archive

NAME = "model.layers.1.mlp.up_proj.weight"
FIRST, SECOND = (f"model-0000{n}-of-00002.safetensors" for n in (1, 2))
INDEX = "model.safetensors.index.json"


def cut(name, by=1):
    def spoil(directory):
        (directory / name).write_bytes((directory / name).read_bytes()[:-by])

    return spoil


def delete(name):
    return lambda directory: (directory / name).unlink()


def index(change):
    def spoil(directory):
        content = json.loads((directory / INDEX).read_text())
        change(content["weight_map"])
        (directory / INDEX).write_text(json.dumps(content))

    return spoil


def duplicate_shard(directory):
    """The second shard's file again under the first one's name."""
    shutil.copy(directory / SECOND, directory / FIRST)


def tensor_in_both(directory):
    save_file(load_file(directory / FIRST) | load_file(directory / SECOND), directory / FIRST)


def header(change):
    """Changes the first shard's header, whose length stays right."""

    def spoil(directory):
        content = (directory / FIRST).read_bytes()
        length = int.from_bytes(content[:8], "little")
        fields = json.loads(content[8 : 8 + length])
        change(fields)
        text = json.dumps(fields).encode()
        (directory / FIRST).write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])

    return spoil


def too_long_header(directory):
    content = (directory / FIRST).read_bytes()
    (directory / FIRST).write_bytes((10**15).to_bytes(8, "little") + content[8:])


def too_many_bytes(fields):
    name = next(iter(fields.keys() - {"__metadata__"}))
    fields[name]["shape"][0] += 10**9
    start = fields[name]["data_offsets"][0]
    size = 2 * int(np.prod(fields[name]["shape"]))
    fields[name]["data_offsets"] = [start, start + size]


def tensors(change):
    """Changes the tensors of the shard that holds NAME, and the index with them."""

    def spoil(directory):
        file = json.loads((directory / INDEX).read_text())["weight_map"][NAME]
        values = load_file(directory / file)
        change(values)
        save_file(values, directory / file, metadata={"format": "pt"})
        index(lambda files: files.pop(NAME) if NAME not in values else None)(directory)
        index(lambda files: files.update(dict.fromkeys(values, file)))(directory)

    return spoil


def set_tensor(name, value):
    return tensors(lambda values: values.update({name: value(values[NAME])}))


def with_bin(change):
    def spoil(directory):
        change(directory, as_bin(directory, shards=2))

    return spoil


def evil_bin(directory, _):
    content = pickle.dumps({NAME: _Evil(str(directory.parent / "was here"))})
    save_archive(directory / "pytorch_model-00001-of-00002.bin", {}, content=content)


class _Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (self.mark, "w")


CASES = {
    "truncated shard": (cut(SECOND), f"{SECOND} is cut off: .*model"),
    "missing shard": (delete(SECOND), f"{SECOND}, which {INDEX} names, is missing"),
    "duplicated shard": (duplicate_shard, f"is in both {FIRST} and {SECOND}"),
    "tensor in two shards": (tensor_in_both, f"is in both {FIRST} and {SECOND}"),
    "index leads out": (index(lambda files: files.update({NAME: "../../etc/passwd"})), "../../etc/passwd, outside"),
    "index names another": (index(lambda files: files.update({"model.more": FIRST})), f"model.more is in {FIRST}"),
    "index is not one": (lambda d: (d / INDEX).write_text("[]"), f"{INDEX} holds a list instead of an object"),
    "header too long": (too_long_header, f"{FIRST} is cut off or not a safetensors file"),
    "header claims more": (header(too_many_bytes), f"{FIRST} is cut off: .* ends at byte"),
    "header of nonsense": (header(lambda fields: fields.update({NAME: 3})), f"header of .*{FIRST} is damaged"),
    "unknown tensor": (set_tensor("model.lora.weight", np.copy), "Unknown in .*: model.lora.weight"),
    "missing tensor": (tensors(lambda values: values.pop(NAME)), f"Missing from .*: {NAME}"),
    "mis-shaped tensor": (set_tensor(NAME, lambda old: old[:-1].copy()), rf"{NAME} in .* has shape \(175, 64\)"),
    "integers": (set_tensor(NAME, lambda old: np.ones(old.shape, np.int32)), f"{NAME} in .* has dtype int32"),
    "eight bits": (
        header(lambda fields: next(v for k, v in fields.items() if k != "__metadata__").update(dtype="F8_E4M3")),
        f"in .*{FIRST} has dtype .V1; weights",
    ),
    "config of another size": (lambda d: change_config(d, intermediate_size=100), "has shape .* the config wants"),
    "config of another depth": (lambda d: change_config(d, num_hidden_layers=12), "Missing from"),
    "config of another kind": (lambda d: change_config(d, alpha_type="matrix"), "alpha_type 'matrix' is not"),
    "no config": (delete("config.json"), "has no config.json"),
    "config cut off": (cut("config.json", 20), "config.json is not valid JSON"),
    "no weights": (lambda d: [f.unlink() for f in d.glob("model*")], "is it a checkpoint"),
    "malicious pickle": (
        with_bin(evil_bin),
        "pytorch_model-00001-of-00002.bin asks to run .*open, which no checkpoint",
    ),
    "truncated bin": (with_bin(lambda d, _: cut("pytorch_model-00002-of-00002.bin", 50)(d)), "00002.bin is cut off"),
    "missing bin": (
        with_bin(lambda d, _: delete("pytorch_model-00002-of-00002.bin")(d)),
        "00002.bin, which .* is missing",
    ),
    "integers in bin": (
        with_bin(
            lambda d, values: save_archive(
                d / "pytorch_model-00001-of-00002.bin", dict.fromkeys(list(values)[::2], np.ones(3, np.int64))
            )
        ),
        "in .*00001-of-00002.bin has dtype int64",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_source(conversion, published, tmp_path, case):
    spoil, message = CASES[case]
    source = shutil.copytree(published, tmp_path / "source")
    spoil(source)
    before = contents(source)
    for command in (
        ["convert", source, tmp_path / "out", "--to", "orbax"],
        ["convert", source, tmp_path / "out", "--to", "safetensors"],
        ["inspect", source],
        ["verify", source, published],
    ):
        err = conversion(*command, status=1)
        assert err.startswith("conversion: ")
        assert err.count("\n") == 1, err
        assert re.search(message, err), err
    assert contents(source) == before
    assert [path.name for path in tmp_path.iterdir()] == ["source"], "no output, and nothing that a pickle made"


def database(directory):
    return sorted((directory / "params").glob("ocdbt.process_*/d/*"), key=lambda file: file.stat().st_size)[-1]


LAYERS, NORM = "model/decoder/groups/layers/mlp/up/kernel", "model/decoder/norm/scale"


def change_array(directory, path, to=None, **changes):
    """Changes the metadata of an Orbax directory's array, or that of a copy of its metadata."""
    arrays = ts.KvStore.open(_database(directory / "params", write=True), context=_CONTEXT).result()
    before, after = (f"{'.'.join(name.split('/'))}/.zarray" for name in (path, path if to is None else to))
    arrays.write(after, json.dumps(json.loads(arrays[before]) | changes)).result()


def array(path, **changes):
    return lambda directory: change_array(directory, path, **changes)


def called(*keys):
    """Says that an Orbax directory has nothing but an array of such a name."""

    def change(directory):
        change_array(directory, NORM, to="/".join(keys))
        leaf = {"key_metadata": [{"key": key, "key_type": 2} for key in keys]}
        (directory / "params" / "_METADATA").write_text(json.dumps({"tree_metadata": {"x": leaf}}))

    return change


ORBAX_CASES = {
    "a trillion layers": (array(LAYERS, shape=[10**12, 1, 32, 64]), "missing or damaged: it has 1,000,000,000,000 lay"),
    "a trillion elements": (array(NORM, shape=[10**12]), "has shape"),
    "a chunk of a trillion": (array(NORM, chunks=[10**12]), "missing or damaged: its shape is .* its chunks are"),
    "shape and chunk of a trillion": (array(NORM, chunks=[10**12], shape=[10**12]), "has shape"),
    "sizes that are too large": (array(NORM, shape=[10**30]), "missing or damaged"),
    "sizes below zero": (array(NORM, shape=[-5]), "missing or damaged"),
    "a number for a name": (called("7"), "Unknown in .*params: 7"),
    "a number without end": (called("decoder", "norm", "9" * 5000, "scale"), "missing or damaged: Exceeds"),
    "no description": (lambda d: (d / "params" / "_METADATA").write_text("{}"), "_METADATA does not describe arrays"),
    "no database": (lambda d: (d / "params" / "manifest.ocdbt").unlink(), "in .*params is missing or damaged"),
    "data missing": (lambda d: database(d).unlink(), "in .*params cannot be read"),
    "data cut off": (lambda d: database(d).write_bytes(database(d).read_bytes()[:1000]), "in .*params cannot be read"),
    "config of another depth": (lambda d: change_config(d, num_hidden_layers=12), "Missing from"),
    "config of another size": (lambda d: change_config(d, intermediate_size=100), "has shape"),
    "config without resampler": (lambda d: change_config(d, use_resampler=False), "Unknown in .*resampler"),
}


@pytest.mark.parametrize("case", ORBAX_CASES)
def test_a_bad_orbax_source(conversion, meshed, tmp_path, case):
    spoil, message = ORBAX_CASES[case]
    shutil.copytree(meshed[1], tmp_path / "source")
    spoil(tmp_path / "source")
    before = contents(tmp_path / "source")
    err = conversion("convert", tmp_path / "source", tmp_path / "out", "--to", "safetensors", status=1)
    assert err.count("\n") == 1, err
    assert re.search(message, err), err
    assert contents(tmp_path / "source") == before
    assert not (tmp_path / "out").exists()


def test_a_hub_id_that_cannot_be_reached(conversion, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    err = conversion("convert", "HuggingFaceM4/idefics-9b", tmp_path / "out", status=1)
    assert "HuggingFaceM4/idefics-9b is not a directory, and no checkpoint of that name" in err


def test_urls_of_unknown_kinds(conversion, checkpoint, tmp_path):
    assert "ftp9://x/y cannot be reached" in conversion("convert", "ftp9://x/y", tmp_path / "out", status=1)
    assert "memory://" in conversion("convert", checkpoint, "memory://bucket/out", status=1)
