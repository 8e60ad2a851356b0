"""`verify`: whether two checkpoints, or one and its manifest, are the same, tensor by tensor."""

import argparse
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from rich.filesize import decimal

from idefics_jax.utils.progress import bytes_progress

from .convert import WORKERS, read
from .manifest import MANIFEST, count_nonfinite, describe, describe_file, read_manifest
from .source import Checkpoint, cast, contiguous, open_checkpoint

SHOWN = 20  # findings that are printed


def verify(options: argparse.Namespace) -> int:
    """Prints what differs, and a line that sums it up; status 1 where something does.

    Raises:
        OSError, ValueError: a checkpoint cannot be read.
    """
    if options.logits and not options.b:
        raise ValueError("--logits compares two checkpoints; name both.")
    one = open_checkpoint(options.a)
    if options.b is None:
        found, rounded = with_manifest(one, options.check_finite), 0
        against = f"its {MANIFEST}"
    else:
        other = open_checkpoint(options.b)
        found, rounded = with_other(one, other, options.check_finite)
        against = str(other.directory)
    for finding in found[:SHOWN]:
        print(finding)
    if len(found) > SHOWN:
        print(f"... and {len(found) - SHOWN:,} more")
    total = sum(tensor.nbytes for tensor in one.tensors.values())
    size = f"{len(one.tensors):,} tensors, {decimal(total)}"
    if found:
        print(f"{one.directory} and {against} differ in {len(found):,} respects ({size}).")
    elif rounded:
        print(f"{one.directory} and {against} are the same once rounded to the coarser dtype ({size}).")
    else:
        print(f"{one.directory} and {against} are bit-identical ({size}).")
    if options.logits:
        from .logits import compare

        return max(int(bool(found)), compare(one, other, options.logits, options.prompt))
    return int(bool(found))


def with_manifest(checkpoint: Checkpoint, finite: bool) -> list[str]:
    """What differs from the manifest: tensors, and the small files beside them."""
    manifest = read_manifest(checkpoint.directory)
    entries = manifest["tensors"]
    found = [f"{name}: not in the checkpoint" for name in entries if name not in checkpoint.tensors]
    found += [f"{name}: not in the manifest" for name in checkpoint.tensors if name not in entries]
    for name, entry in manifest["files"].items():
        file = checkpoint.directory / name
        if not file.is_file() or describe_file(file) != entry:
            found.append(f"{name}: {'changed' if file.is_file() else 'missing'}")

    def check(name: str) -> list[str]:
        tensor = contiguous(read(checkpoint, name))
        entry = describe(tensor)
        differing = [key for key in entry if entry[key] != entries[name].get(key)]
        return [f"{name}: its {', '.join(differing)} changed"] * bool(differing) + nonfinite(name, tensor, finite)

    return found + for_each(checkpoint, [name for name in checkpoint.tensors if name in entries], check)


def with_other(one: Checkpoint, other: Checkpoint, finite: bool) -> tuple[list[str], int]:
    """What differs between two checkpoints, and how many tensors had to be rounded to be the same."""
    found = [f"{name}: only in {one.directory}" for name in one.tensors if name not in other.tensors]
    found += [f"{name}: only in {other.directory}" for name in other.tensors if name not in one.tensors]
    rounded = []

    def check(name: str) -> list[str]:
        a, b = contiguous(read(one, name)), contiguous(read(other, name))
        if a.dtype != b.dtype and a.shape == b.shape:
            rounded.append(name)
        return [f"{name}: {text}" for text in [difference(a, b)] if text] + nonfinite(name, a, finite)

    found += for_each(one, [name for name in one.tensors if name in other.tensors], check)
    return found, len(rounded)


def difference(a: np.ndarray, b: np.ndarray) -> str:
    """How two tensors differ, in words; "" if they are the same, rounded to the coarser dtype if they have two."""
    if a.shape != b.shape:
        return f"shapes {list(a.shape)} and {list(b.shape)}"
    if a.dtype != b.dtype:
        coarse = min(a.dtype, b.dtype, key=lambda dtype: (dtype.itemsize, dtype.name))
        a, b = cast(a, coarse), cast(b, coarse)
    bits = np.dtype(f"u{a.dtype.itemsize}")
    if np.array_equal(a.view(bits), b.view(bits)):
        return ""
    with np.errstate(invalid="ignore"):
        distance = np.abs(a.astype(np.float64) - b.astype(np.float64))
    if np.isnan(distance).any():
        at = np.unravel_index(int(np.argmax(np.isnan(distance))), a.shape)
        return f"NaN or infinity on one side, first at {[int(i) for i in at]}"
    at = np.unravel_index(int(np.argmax(distance)), a.shape)
    count = int(np.count_nonzero(a.view(bits) != b.view(bits)))
    return f"{count:,} of {a.size:,} elements differ, at most by {distance[at]:.3g}, at {[int(i) for i in at]}"


def nonfinite(name: str, tensor: np.ndarray, wanted: bool) -> list[str]:
    """A finding for a tensor that holds NaN or infinity, where that is wanted."""
    count = count_nonfinite(tensor) if wanted else 0
    return [f"{name}: {count:,} of {tensor.size:,} elements are NaN or infinite"] * bool(count)


def for_each(checkpoint: Checkpoint, names: Iterable[str], check: Callable[[str], list[str]]) -> list[Any]:
    """The findings for tensors, in order; a few are read at a time."""
    names = list(names)
    total = sum(checkpoint.tensors[name].nbytes for name in names)
    with (
        bytes_progress("Comparing", total, sys.stderr.isatty()) as advance,
        ThreadPoolExecutor(WORKERS) as workers,
    ):

        def task(name: str) -> list[str]:
            found = check(name)
            advance(checkpoint.tensors[name].nbytes)
            return found

        return [finding for found in workers.map(task, names) for finding in found]
