"""The conversion program on a full-size idefics-9b against `cp -r` of the same files; and its plan for idefics-80b.

    python -m benchmarks.conversion [--directory DIR] [--rounds N] [--cold]

Makes 18 GB of random weights in the published layout, in DIR, and needs as much again for the copies. Conversion and
copy run in turns, each into a directory that is removed before the next. The conversion has its output on the disk
itself when it ends; `cp` is timed with `sync` behind it, and without, which leaves some gigabytes in memory.
`--cold` (needs root) empties the page cache before each run. Memory is the largest resident set of the process, pages
of the source that are mapped included. The checkpoint of 160 GB is headers and a hole: no byte of it is stored.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np

from benchmarks.timing import summary
from idefics_jax import IdeficsConfig, IdeficsForVisionText2Text, hf
from idefics_jax.tensor_files import batches, shard_files, write_index, write_tensors
from tests.make_checkpoint import _number_aware
from tests.tiny_tokenizer import save_tiny_tokenizer

SHARD_BYTES = 5 * 10**9
BLOCK = 2**24  # random numbers drawn at a time
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def make_checkpoint(directory: Path, config: IdeficsConfig, sparse: bool = False) -> None:
    """Writes a checkpoint of this config in the published layout, shard by shard; sparse, with holes for weights."""
    directory.mkdir(parents=True)
    model = IdeficsForVisionText2Text.abstract(config, stacked=True)
    shapes = {str(name): weight.shape for weight in hf.weights(model, config) for name in weight.names.flat}
    kinds = {name: (BFLOAT16, shape) for name, shape in sorted(shapes.items(), key=_number_aware)}
    sizes = [2 * int(np.prod(shape)) for _, shape in kinds.values()]
    shards = batches(list(kinds), sizes, SHARD_BYTES)
    files = {
        file: {name: kinds[name] for name in shard}
        for file, shard in zip(shard_files(len(shards)), shards, strict=True)
    }
    random = np.random.default_rng(0)
    for file, part in files.items():
        if sparse:
            write_header(directory / file, part)
        else:
            write_tensors(directory / file, part, (random_weight(shape, random) for _, shape in part.values()))
    write_index(directory, files)
    (directory / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    save_tiny_tokenizer(directory)


def random_weight(shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Finite bfloat16 numbers of random sign, between 0.008 and 0.03 in size."""
    bits = np.frombuffer(random.bytes(2 * int(np.prod(shape))), np.uint16) & 0x80FF | 0x3C00
    return bits.view(BFLOAT16).reshape(shape)


def write_header(file: Path, part: dict) -> None:
    """A safetensors file whose data is a hole."""
    empty = {name: np.lib.stride_tricks.as_strided(np.zeros((), BFLOAT16), shape, (0,) * len(shape)) for name, (_, shape) in part.items()}
    raise NotImplementedError(empty)
