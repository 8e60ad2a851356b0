"""What the tests of the conversion share."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from conversion.cli import main
from idefics_jax import IdeficsConfig
from idefics_jax.checkpoints.safetensors_io import SINGLE
from idefics_jax.checkpoints.tensors import stored_tensors
from tests.support.torch_archive import save_archive

ROOT = Path(__file__).parents[2]


def read_all(directory):
    """Every tensor of a checkpoint of any format."""
    stored = stored_tensors(directory, IdeficsConfig.from_pretrained(directory))
    return {name: np.array(entry.read()) for name, entry in stored.items()}


def assert_same_bits(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (tensor.dtype, tensor.shape), name
        assert ours[name].tobytes() == tensor.tobytes(), name


def change_config(directory, **changes):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | changes))


def store(directory, tensors):
    """Puts these tensors into a checkpoint of one file."""
    save_file(tensors, directory / SINGLE, metadata={"format": "pt"})


def as_bin(directory, shards=2):
    """Makes `pytorch_model-*.bin` files with an index of a checkpoint's safetensors, which are removed."""
    tensors = read_all(directory)
    for file in directory.glob("*.safetensors*"):
        file.unlink()
    names, weight_map = list(tensors), {}
    for number in range(shards):
        file = f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
        part = names[number::shards]
        save_archive(directory / file, {name: tensors[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return tensors


def contents(directory):
    """Every file below a directory, by its path there."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def converted(source, out, *options):
    """Converts in this process; gives the output's place."""
    assert main(["convert", str(source), str(out), *options]) == 0
    return out


def start(*arguments, **environment):
    """`python -m conversion` as a process of its own, with one CPU device."""
    settings = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | environment
    command = [sys.executable, "-m", "conversion", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*arguments, status=0, **environment):
    """The same, to its end: what it printed, to standard error where it fails."""
    process = start(*arguments, **environment)
    out, err = process.communicate(timeout=300)
    assert process.returncode == status, out + err
    return err if status else out
