"""`convert`: tensors flow one by one from the source through a checksum into the output."""

import argparse
import json
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.filesize import decimal

from idefics_jax.checkpoints.safetensors_io import nbytes
from idefics_jax.parallel.memory import check_machine, free_memory
from idefics_jax.utils.commit import check_place, reason
from idefics_jax.utils.paths import AnyPath, as_path
from idefics_jax.utils.progress import bytes_progress

from . import processes
from .manifest import CHECKSUM, MANIFEST, count_nonfinite, describe, write_manifest
from .source import Checkpoint, Kind, cast, contiguous, open_checkpoint
from .targets import OrbaxTarget, SafetensorsTarget, Target, Unit
from .work import Work

WORKERS = 6  # threads, each with a unit in hand: some wait for the disk while others compute
HELD_BYTES = 1600 * 10**6  # of all units in hand together, or twice the largest if that is more
BASE_BYTES = 400 * 10**6  # of Python, JAX and TensorStore themselves
CARRIED = ("*.json", "*.jinja", "*.model", "*.txt", "*.md", "LICENSE*")  # files beside the weights that go along
NOT_CARRIED = ("config.json", MANIFEST)  # written anew, as an index of weights is


def convert(options: argparse.Namespace) -> int:
    """Runs the command.

    Raises:
        OSError, ValueError, RuntimeError: one sentence on what is wrong; what was finished is kept for --resume.
    """
    source = open_checkpoint(options.source)
    work = Work.at(as_path(options.out))
    apart_from(source, work)
    kinds = {name: (np.dtype(options.dtype or dtype), shape) for name, (dtype, shape) in source.kinds.items()}
    group = processes.Processes() if options.dry_run else processes.start(options)
    target: Target
    if options.to == "orbax":
        target = OrbaxTarget(work.folder, kinds, source, group.index, group.count)
    else:
        target = SafetensorsTarget(work.folder, kinds, options.max_shard_size)
    if options.dry_run:
        print(plan(source, target, kinds, options))
        return 0
    if options.resume and not options.force and work.is_complete():
        print(f"{work.out} is complete already.")
        return 0
    check_place(work.folder)
    start = time.monotonic()
    with ExitStack() as held:
        with group.together():
            check_machine("The conversion", {"copies of its largest tensors": copied(target, options)})
            if group.index == 0:
                held.enter_context(work.locked())
                begin(work, job(source, kinds, options), options)
        with group.together():
            write_share(source, target, work, group, kinds, options)
        with group.together():
            if group.index == 0:
                finish(source, target, work, kinds, options)
    if group.index == 0:
        total, seconds = sum(unit.nbytes for unit in target.units), time.monotonic() - start
        speed = f"{decimal(total)} in {seconds:.1f} s, {decimal(int(total / seconds))} per second"
        print(f"{work.out}: {len(kinds):,} tensors, {speed}.")
        for name in source.left_out:
            print(f"Left out, since it holds nothing to load: {name}", file=sys.stderr)
    return 0


def begin(work: Work, job: dict[str, Any], options: argparse.Namespace) -> None:
    """Makes the folder to work in, or takes up the one that a stopped run left."""
    try:
        work.begin(job, options.resume, options.force)
    except (FileExistsError, ValueError):
        raise
    except Exception as error:  # a disk's, or an object store's
        raise OSError(f"{work.folder} could not be made: {reason(error)}.") from error


def write_share(
    source: Checkpoint,
    target: Target,
    work: Work,
    group: processes.Processes,
    kinds: dict[str, Kind],
    options: argparse.Namespace,
) -> None:
    """Writes and records this process's units, but for those that are there already."""
    share, visible = group.share(target.units), sys.stderr.isatty() and group.index == 0
    if options.resume:
        there = [unit for unit in share if (entries := work.recorded(unit.name)) and is_checked(entries, options)]
        with bytes_progress("Checking what is there", sum(unit.nbytes for unit in there), visible) as advance:
            intact = run_all(there, lambda unit: is_intact(unit, target, work, advance))
        done = {unit.name for unit, good in zip(there, intact, strict=True) if good}
        share = [unit for unit in share if unit.name not in done]
    total = sum(unit.nbytes for unit in share)
    if isinstance(work.folder, Path):
        check_space(work.folder, total)

    memory = Budget(most_held(source, target, kinds, options, free_memory()))

    def convert_unit(unit: Unit) -> None:
        entries: dict[str, Any] = {}

        def tensors() -> Iterator[tuple[str, np.ndarray]]:
            for name, (dtype, _) in unit.kinds.items():
                tensor = contiguous(cast(read(source, name), dtype))
                entries[name] = describe(tensor)
                if options.check_finite:
                    entries[name]["nonfinite"] = count_nonfinite(tensor)
                yield name, tensor
                advance(tensor.nbytes)

        try:
            with memory.hold(held(unit, source, kinds, options)):
                target.write(unit, tensors())
            work.record(unit.name, entries)
        except SourceError:
            raise
        except Exception as error:  # a disk's, an object store's or TensorStore's
            raise OSError(
                f"{work.folder} could not be written: {reason(error)}. What is finished is kept there: once that is "
                "mended, repeat the command with --resume."
            ) from error

    with bytes_progress(f"Writing {work.out.name}", total, visible) as advance:
        run_all(share, convert_unit)


class SourceError(OSError):
    """A tensor of the source cannot be read."""


def read(source: Checkpoint, name: str) -> np.ndarray:
    """A tensor of the source, in Hugging Face's axes.

    Raises:
        SourceError: it cannot be read.
    """
    try:
        return source.tensors[name].read()
    except Exception as error:  # a disk's, an object store's or TensorStore's
        raise SourceError(f"{name} in {source.tensors[name].file} cannot be read: {reason(error)}.") from error


def run_all(units: list[Unit], task: Callable[[Unit], Any]) -> list[Any]:
    """The task's results, from several threads; after the first error no further unit is begun."""
    with ThreadPoolExecutor(WORKERS) as workers:
        futures = [workers.submit(task, unit) for unit in units]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            workers.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result() for future in futures]


def is_checked(entries: dict[str, Any], options: argparse.Namespace) -> bool:
    """Whether a recorded unit was checked as this run wants it."""
    return not options.check_finite or all("nonfinite" in entry for entry in entries.values())


def is_intact(unit: Unit, target: Target, work: Work, advance: Callable[[int], None]) -> bool:
    """Whether what was written of a unit is what its record says: a machine may have lost power meanwhile."""
    entries = work.recorded(unit.name) or {}
    for name in unit.kinds:
        try:
            tensor = contiguous(target.read(unit, name))
        except (OSError, ValueError, KeyError):
            return False
        advance(tensor.nbytes)
        if describe(tensor)[CHECKSUM] != entries.get(name, {}).get(CHECKSUM):
            return False
    return True


def finish(source: Checkpoint, target: Target, work: Work, kinds: dict[str, Kind], options: argparse.Namespace) -> None:
    """Joins what all processes wrote, adds the small files and the manifest, and gives the output its name."""
    entries: dict[str, Any] = {}
    for unit in target.units:
        entries |= work.recorded(unit.name) or {}
    if entries.keys() != kinds.keys():
        raise OSError(f"Records in {work.records} have vanished; repeat the command with --resume.")
    spoilt = {name: entry.pop("nonfinite", 0) for name, entry in entries.items()}
    spoilt = {name: count for name, count in spoilt.items() if count}
    if options.check_finite and spoilt:
        for name, count in spoilt.items():
            print(
                f"{name}: {count:,} of {int(np.prod(kinds[name][1])):,} elements are NaN or infinite", file=sys.stderr
            )
        raise ValueError(
            f"{len(spoilt)} tensors hold NaN or infinity, the first {next(iter(spoilt))}; to have the checkpoint all "
            "the same, repeat the command with --resume and without --check-finite."
        )
    try:
        target.finish()
        files = carry(source.directory, work.folder)
        write_manifest(work.folder, str(source.directory), options.to, kinds, entries, files)
        work.publish(config_json(source, options.dtype))
    except Exception as error:  # a disk's, an object store's or TensorStore's
        raise OSError(f"{work.out} could not be finished: {reason(error)}; repeat with --resume.") from error


def carry(source: AnyPath, out: AnyPath) -> list[str]:
    """Copies the tokenizer's, processor's and other small files; returns their names."""
    names = {file.name for pattern in CARRIED for file in source.glob(pattern)}
    names = sorted(name for name in names if name not in NOT_CARRIED and not name.endswith(".index.json"))
    for name in names:
        (out / name).write_bytes((source / name).read_bytes())
    return names


def config_json(source: Checkpoint, dtype: str | None) -> bytes:
    """The output's `config.json`: the source's, but for the dtype."""
    if dtype is None:
        return (source.directory / "config.json").read_bytes()
    values = {name: value for name, value in source.values.items() if name != "dtype"} | {"torch_dtype": dtype}
    return (json.dumps(values, indent=2) + "\n").encode()


def job(source: Checkpoint, kinds: dict[str, Kind], options: argparse.Namespace) -> dict[str, Any]:
    """What must be the same for a stopped run to be gone on with."""
    files = sorted({tensor.file for tensor in source.tensors.values()}, key=str)
    return {
        "source": [str(source.directory), {file.name: file.stat().st_size for file in files if file.is_file()}],
        "--to": options.to,
        "--dtype": options.dtype,
        "--max-shard-size": options.max_shard_size if options.to == "safetensors" else None,
        "--num-processes": options.num_processes,
        "tensors": {name: [dtype.name, list(shape)] for name, (dtype, shape) in kinds.items()},
    }


def apart_from(source: Checkpoint, work: Work) -> None:
    """Refuses an output that is, holds or lies in the source.

    Raises:
        ValueError: it does.
    """
    if isinstance(source.directory, Path) != isinstance(work.out, Path):
        return
    ours, theirs = ([str(p.resolve()) + "/" for p in (path, source.directory)] for path in (work.out, work.folder))
    for one, other in (ours, theirs):
        if one.startswith(other) or other.startswith(one):
            raise ValueError(f"{work.out} and {source.directory} overlap; choose an output apart from the source.")


def check_space(folder: AnyPath, needed: int) -> None:
    """Refuses to begin what the disk cannot hold.

    Raises:
        OSError: it cannot.
    """
    free = shutil.disk_usage(str(folder)).free
    if needed > free:
        raise OSError(
            f"{folder} needs {decimal(needed)} more, and {decimal(free)} are free; make room or go elsewhere."
        )


def plan(source: Checkpoint, target: Target, kinds: dict[str, Kind], options: argparse.Namespace) -> str:
    """What would be done, and the memory it takes, in a few lines."""
    read_bytes = sum(tensor.nbytes for tensor in source.tensors.values())
    written = sum(unit.nbytes for unit in target.units)
    largest = max(kinds, key=lambda name: nbytes(*kinds[name]))
    files = len({tensor.file for tensor in source.tensors.values()})
    memory = BASE_BYTES + most_held(source, target, kinds, options)
    made = {"orbax": "pieces of Orbax arrays", "safetensors": "safetensors files"}[options.to]
    lines = {
        "source": f"{source.directory} ({source.format}): {len(kinds):,} tensors, {decimal(read_bytes)}, {files} files",
        "output": f"{options.out}: {decimal(written)} in {len(target.units):,} {made}",
        "largest tensor": f"{largest}, {decimal(nbytes(*kinds[largest]))}",
        "memory": f"at most about {decimal(memory)}",
    }
    return "\n".join(f"{name:<16}{text}" for name, text in lines.items())


def held(unit: Unit, source: Checkpoint, kinds: dict[str, Kind], options: argparse.Namespace) -> int:
    """Bytes in memory while a unit is written: a tensor as it is read and as it is cast, and TensorStore's copies."""
    tensor = max(
        source.tensors[name].nbytes + nbytes(*kinds[name]) * (options.dtype is not None) for name in unit.kinds
    )
    return tensor + (2 * unit.nbytes if options.to == "orbax" else 0)


def most_held(
    source: Checkpoint, target: Target, kinds: dict[str, Kind], options: argparse.Namespace, free: int | None = None
) -> int:
    """The bytes that all units in hand may take together; at most those that are `free`, if they suffice for a unit."""
    largest = max(held(unit, source, kinds, options) for unit in target.units)
    most = max(HELD_BYTES, 2 * largest)
    return most if free is None else max(largest, min(most, free))


def copied(target: Target, options: argparse.Namespace) -> int:
    """The least that is in memory, beside pages of files: the largest tensor as it is cast, a unit for TensorStore."""
    tensor = max(nbytes(*kind) for unit in target.units for kind in unit.kinds.values())
    stored = max(unit.nbytes for unit in target.units)
    return tensor * (options.dtype is not None) + stored * (options.to == "orbax")


class Budget:
    """Bytes of memory that threads share: whoever wants more than are free waits."""

    def __init__(self, free: int):
        self.free = free
        self.changed = threading.Condition()

    @contextmanager
    def hold(self, amount: int) -> Iterator[None]:
        """Takes some, no more than there are in all, until the end of the block."""
        with self.changed:
            self.changed.wait_for(lambda: self.free >= amount)
            self.free -= amount
        try:
            yield
        finally:
            with self.changed:
                self.free += amount
                self.changed.notify_all()
