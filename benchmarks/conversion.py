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
import multiprocessing
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
from idefics_jax.checkpoints.safetensors_io import batches, make_header, shard_files, write_index, write_tensors
from tests.support.tiny_tokenizer import save_tiny_tokenizer

SHARD_BYTES = 5 * 10**9
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def make_in_child(directory: Path, preset: str, sparse: bool) -> None:
    """Calls `make_checkpoint` in a process of its own, so that this one stays small: JAX is only imported there."""
    child = multiprocessing.get_context("spawn").Process(target=make_checkpoint, args=(directory, preset, sparse))
    child.start()
    child.join()
    if child.exitcode:
        raise SystemExit(f"{directory} could not be made.")


def make_checkpoint(directory: Path, preset: str, sparse: bool) -> None:
    """Writes a checkpoint in the published layout, shard by shard; sparse, with holes for weights."""
    from idefics_jax import IdeficsConfig, IdeficsForVisionText2Text
    from idefics_jax.checkpoints import hf_names

    directory.mkdir(parents=True)
    config = getattr(IdeficsConfig, preset)()
    model = IdeficsForVisionText2Text.abstract(config, stacked=True)
    shapes = {str(name): weight.shape for weight in hf_names.weights(model, config) for name in weight.names.flat}
    names = sorted(shapes, key=hf_names.by_number)
    kinds = {name: (BFLOAT16, shapes[name]) for name in names}
    sizes = [2 * int(np.prod(shape)) for _, shape in kinds.values()]
    shards = batches(list(kinds), sizes, SHARD_BYTES)
    files = {
        file: {name: kinds[name] for name in shard}
        for file, shard in zip(shard_files(len(shards)), shards, strict=True)
    }
    random = np.random.default_rng(0)
    for file, part in files.items():
        if sparse:
            header = make_header(part)
            (directory / file).write_bytes(header)
            os.truncate(directory / file, len(header) + sum(2 * int(np.prod(shape)) for _, shape in part.values()))
        else:
            write_tensors(directory / file, part, (random_weight(shape, random) for _, shape in part.values()))
    write_index(directory, files)
    (directory / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    save_tiny_tokenizer(directory)


def random_weight(shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Finite bfloat16 numbers of random sign, between 0.008 and 0.03 in size."""
    bits = np.frombuffer(random.bytes(2 * int(np.prod(shape))), np.uint16) & 0x80FF | 0x3C00
    return bits.view(BFLOAT16).reshape(shape)


def run(command: list, cold: bool) -> tuple[float, int, str]:
    """Seconds, the largest resident set in bytes, and the standard output of a process."""
    os.sync()
    if cold:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    start = time.perf_counter()
    # Its largest resident set includes this process's before the fork, which is why JAX is not imported here.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{command} failed.")
    return seconds, usage.ru_maxrss * 1024, output


def conversion(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "conversion", *map(str, arguments)]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.conversion", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--directory", type=Path, help="where the checkpoints go (default: a temporary directory)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cold", action="store_true", help="empty the page cache before each run (needs root)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as temporary:
        folder = Path(temporary)
        print_plan(folder)
        measure(folder, options.rounds, options.cold)


def print_plan(folder: Path) -> None:
    """What the program says of idefics-80b, from headers."""
    make_in_child(folder / "idefics-80b", "idefics_80b", True)
    for command in (["inspect", folder / "idefics-80b"], ["convert", folder / "idefics-80b", "out", "--dry-run"]):
        seconds, _, output = run(conversion(*command), cold=False)
        print(f"{output}\n({seconds:.1f} s, of which most is importing JAX)\n")


def measure(folder: Path, rounds: int, cold: bool) -> None:
    """The table for idefics-9b."""
    source, out = folder / "idefics-9b", folder / "out"
    make_in_child(source, "idefics_9b", False)
    size = sum(file.stat().st_size for file in source.iterdir())
    commands = {
        "cp -r": ["cp", "-r", source, out],
        "cp -r and sync": ["sh", "-c", f"cp -r '{source}' '{out}' && sync"],
        "safetensors to Orbax": conversion("convert", source, out),
        "safetensors to safetensors": conversion("convert", source, out, "--to", "safetensors"),
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    memory = dict.fromkeys(commands, 0)
    for _ in range(rounds):
        for name, command in commands.items():
            seconds, resident, _ = run(command, cold)
            shutil.rmtree(out)
            times[name].append(seconds)
            memory[name] = max(memory[name], resident)
            print(f"{name}: {seconds:.1f} s", file=sys.stderr)
    print(f"{size / 1e9:.1f} GB, page cache {'emptied before each run' if cold else 'as the run before left it'}\n")
    print("| | seconds | MB per second | speed of cp -r (min to max) | of cp -r and sync | peak memory |")
    print("|---|---|---|---|---|---|")
    for name in commands:
        seconds = statistics.median(times[name])
        ratios = [summary(times[name], times[other]).ratios for other in ("cp -r", "cp -r and sync")]
        resident = f"{memory[name] / 2**30:.2f} GiB"
        print(f"| {name} | {seconds:.1f} | {size / seconds / 1e6:.0f} | {ratios[0]} | {ratios[1]} | {resident} |")


if __name__ == "__main__":
    main()
