"""What the TPU compiler predicts of pods: one line for each program, compiled here without a TPU.

    python -m benchmarks.pods [--only TEXT]

Training: rows of 1,024 tokens and 4 images. The model's FLOPs are counted without what is computed twice, with causal
attention halved, and of frozen parts without their weights' gradients; a step lasts as `idefics_jax.cost.Cost` says.
Generation: prompts of 256 tokens and one image; bytes of a step are those between HBM and a chip, of which the weights
and caches are needed. Each program takes minutes.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import numpy as np

from idefics_jax import IdeficsConfig
from idefics_jax.cost import words
from idefics_jax.parallel.hardware import GIB
from idefics_jax.planning.generation import plan_generation
from train.cli import parse
from train.planning.compiling import make_plan
from train.planning.report import remat_in_words

COMMON = "--out plans --data.sequence-length 1024 --data.max-images 4 --optimizer.weight-decay 0.1"
ALL_BUT_OUT = "query key value attention gate up dropout"
COPIES = "--mesh.fsdp 16 --mesh.data"  # of the weights, each over 16 chips
PROGRAMS = {
    "9B `full`, v5e-16": "--random 9b --trainable full --plan v5e:4x4 --batch-size 64",
    "9B `full`, v5e-64": f"--random 9b --trainable full --plan v5e:8x8 {COPIES} 4 --batch-size 256",
    "9B `full`, v5e-256": f"--random 9b --trainable full --plan v5e:16x16 {COPIES} 16 --batch-size 1024",
    "9B `full`, v5e-64, one copy": "--random 9b --trainable full --plan v5e:8x8 --batch-size 256",
    "9B `full`, v5e-256, one copy": "--random 9b --trainable full --plan v5e:16x16 --batch-size 1024",
    "9B `full`, two v5e-16": "--random 9b --trainable full --plan v5e:4x4 --slices 2 --mesh.data 2 --batch-size 128",
    "9B `full`, v5p-8": "--random 9b --trainable full --plan v5p:2x2x1 --batch-size 32 --remat dots",
    "9B `full`, v6e-8": "--random 9b --trainable full --plan v6e:2x4 --batch-size 64 --remat attention query",
    "80B `full`, v5e-256": "--random 80b --trainable full --plan v5e:16x16 --batch-size 768",
    "80B `full`, v5p-128": "--random 80b --trainable full --plan v5p:4x4x4 --batch-size 192 --remat dots",
    "80B `full`, v6e-256": "--random 80b --trainable full --plan v6e:16x16 --batch-size 1024 --remat attention",
    "9B `idefics`, v5e-8": "--random 9b --trainable idefics --plan v5e:2x4 --batch-size 16 --remat dots",
    "9B `idefics`, v5e-4": "--random 9b --trainable idefics --plan v5e:2x2 --batch-size 16",
    "9B `lora`, v5e-4": f"--random 9b --trainable lora --plan v5e:2x2 --batch-size 8 --remat {ALL_BUT_OUT}",
    "80B `idefics`, v5e-32": "--random 80b --trainable idefics --plan v5e:4x8 --batch-size 32",
    "80B `idefics`, v5e-64": "--random 80b --trainable idefics --plan v5e:8x8 --batch-size 192",
    "80B `idefics`, v5p-8": "--random 80b --trainable idefics --plan v5p:2x2x1 --batch-size 8",
    "80B `lora`, v5e-16": "--random 80b --trainable lora --plan v5e:4x4 --batch-size 16",
    "80B `lora`, v5e-32": "--random 80b --trainable lora --plan v5e:4x8 --batch-size 96",
    "80B `lora`, v5p-8": "--random 80b --trainable lora --plan v5p:2x2x1 --batch-size 32 --remat attention query",
}
COLUMNS = ("", "rows per chip", "memory of a chip", "MFU", "tokens/s per chip", "collectives not hidden", "compiled in")

#: Architecture, pod, mesh, prompts of 256 tokens and one image each.
GENERATION = {
    "9B generates, v5e-4": ("9b", "v5e:2x2", {"tensor": 4}, 8),
    "9B generates, v5e-8, sooner": ("9b", "v5e:2x4", {"tensor": 8}, 8),
    "9B generates, v5e-8, more": ("9b", "v5e:2x4", {"data": 4, "tensor": 2}, 16),
    "80B generates, v5e-32, sooner": ("80b", "v5e:4x8", {"fsdp": 2, "tensor": 16}, 16),
    "80B generates, v5e-32, more": ("80b", "v5e:4x8", {"fsdp": 8, "tensor": 4}, 64),
    "80B generates, v5p-8": ("80b", "v5p:2x2x1", {"tensor": 4}, 8),
}
GENERATION_COLUMNS = (
    "",
    "prompts",
    "memory of a chip",
    "prompts read in",
    "MFU",
    "a token of each in",
    "tokens/s",
    "bytes moved / needed",
    "collectives of a step: count, MB, not hidden",
    "compiled in",
)
TOKENS, NEW_TOKENS = 256, 128


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pods", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="a part of the names of the programs to compile")
    only = parser.parse_args().only
    jax.config.update("jax_platforms", "cpu")  # only the compiler is needed
    _print(COLUMNS, {name: partial(trained, options) for name, options in PROGRAMS.items() if only in name})
    _print(
        GENERATION_COLUMNS, {name: partial(generated, *options) for name, options in GENERATION.items() if only in name}
    )


def _print(columns: tuple[str, ...], lines: dict[str, Callable[[], tuple[str, ...]]]) -> None:
    if lines:
        print(*words.table(columns, []), sep="\n")
    for name, make in lines.items():
        print(f"| {' | '.join((name, *make()))} |", flush=True)


def trained(options: str) -> tuple[str, ...]:
    """A line of the table of training."""
    plan = make_plan(parse([*COMMON.split(), *options.split()]))
    config, seconds = plan.config, f"{plan.compile_seconds:.0f} s"
    rows = config.batch_size * config.mesh.tensor / plan.devices
    if plan.memory is None or plan.cost is None or not plan.memory.fits:
        return (f"{rows:g}", f"does not fit: {plan.reason}", "", "", "", seconds)
    cost, memory = plan.cost, plan.memory
    tokens = config.batch_size * config.data.tokens / cost.step_seconds / plan.devices
    return (
        f"{rows:g}, {remat_in_words(config.remat)}",
        f"{memory.total / GIB:.1f} of {memory.chip.hbm_bytes / GIB:.1f} GiB",
        f"{cost.mfu(plan.model_flops):.3f}",
        f"{tokens:,.0f}",
        f"{cost.exposed_seconds / cost.step_seconds:.0%}",
        seconds,
    )


def generated(architecture: str, topology: str, mesh: dict[str, int], rows: int) -> tuple[str, ...]:
    """A line of the table of generation."""
    config = replace(getattr(IdeficsConfig, f"idefics_{architecture}")(), dtype="bfloat16")
    size = config.vision_config.image_size
    inputs = {
        "input_ids": np.ones((rows, TOKENS), np.int32),
        "attention_mask": np.ones((rows, TOKENS), np.int32),
        "pixel_values": np.zeros((rows, 1, size, size, 3), np.float32),
        "image_attention_mask": np.ones((rows, TOKENS, 1), np.int32),
    }
    mesh = {"fsdp": 1} | mesh
    plan = plan_generation(config, inputs, topology=topology, slices=1, mesh=mesh, max_new_tokens=NEW_TOKENS)
    seconds = f"{sum(program.compiled.seconds for program in plan.programs):.0f} s"
    if not plan.fits:
        reasons = "; ".join(each.compiled.reason for each in plan.programs if each.compiled.reason)
        return (f"{rows}", f"does not fit: {reasons}", *[""] * 6, seconds)
    hbm, step = plan.chip.hbm_bytes, plan.decoding.compiled.cost
    assert step is not None
    sent = (sum(each.count for each in step.collectives), sum(each.wire_bytes for each in step.collectives) / 1e6)
    return (
        f"{rows}",
        f"{(hbm - min(program.free for program in plan.programs)) / GIB:.1f} of {hbm / GIB:.1f} GiB",
        f"{plan.reading_seconds * 1e3:.0f} ms",
        f"{plan.reading_mfu:.3f}",
        f"{step.step_seconds * 1e3:.1f} ms",
        f"{plan.answers / step.step_seconds:,.0f}",
        f"{plan.traffic:.2f}",
        f"{sent[0]:,.0f}, {sent[1]:,.1f}, {step.exposed_seconds / step.step_seconds:.0%}",
        seconds,
    )


if __name__ == "__main__":
    start = time.monotonic()
    main()
    print(f"\n{time.monotonic() - start:.0f} s")
