"""What the TPU compiler predicts of training on pods: one line for each program, compiled here without a TPU.

    python -m benchmarks.pods [--only TEXT]

Rows have 1,024 tokens and 4 images. The model's FLOPs are counted without what is computed twice, with causal attention
halved, and of frozen parts without their weights' gradients; a step lasts as `idefics_jax.cost.Cost.step_seconds` says.
Each program takes minutes.
"""

import argparse
import time

from idefics_jax.cost.chips import GIB
from train.cli import parse
from train.planning.compiling import Plan, make_plan

COMMON = "--out plans --data.sequence-length 1024 --data.max-images 4 --optimizer.weight-decay 0.1"
PROGRAMS = {
    "9B `full`, v5e-16": "--random 9b --trainable full --plan v5e:4x4 --batch-size 64",
    "9B `full`, v5p-8": "--random 9b --trainable full --plan v5p:2x2x1 --batch-size 32",
    "9B `full`, v6e-8": "--random 9b --trainable full --plan v6e:2x4 --batch-size 32",
    "80B `full`, v5e-256": "--random 80b --trainable full --plan v5e:16x16 --batch-size 512",
    "80B `full`, v5p-128": "--random 80b --trainable full --plan v5p:4x4x4 --batch-size 256",
    "80B `full`, v6e-256": "--random 80b --trainable full --plan v6e:16x16 --batch-size 1024",
    "9B `idefics`, v5e-8": "--random 9b --trainable idefics --plan v5e:2x4 --batch-size 16",
    "9B `lora`, v5e-4": "--random 9b --trainable lora --plan v5e:2x2 --batch-size 8",
    "80B `idefics`, v5e-64": "--random 80b --trainable idefics --plan v5e:8x8 --batch-size 64",
    "80B `lora`, v5e-32": "--random 80b --trainable lora --plan v5e:4x8 --batch-size 32",
}
COLUMNS = ("", "rows per chip", "memory of a chip", "MFU", "tokens/s per chip", "collectives not hidden", "compiled in")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pods", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="a part of the names of the programs to compile")
    only = parser.parse_args().only
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for name, options in PROGRAMS.items():
        if only in name:
            print(line(name, make_plan(parse([*COMMON.split(), *options.split()]))), flush=True)


def line(name: str, plan: Plan) -> str:
    """A line of the table."""
    config, minutes = plan.config, f"{plan.compile_seconds:.0f} s"
    rows = config.batch_size * config.mesh.tensor / plan.devices
    if plan.memory is None or plan.cost is None or not plan.memory.fits:
        return f"| {name} | {rows:g} | does not fit: {plan.reason} | | | | {minutes} |"
    cost, memory = plan.cost, plan.memory
    tokens = config.batch_size * config.data.sequence_length / cost.step_seconds / plan.devices
    cells = (
        f"{rows:g}, remat {config.remat}",
        f"{memory.total / GIB:.1f} of {memory.chip.hbm_bytes / GIB:.1f} GiB",
        f"{cost.mfu(plan.model_flops):.3f}",
        f"{tokens:,.0f}",
        f"{cost.exposed_seconds / cost.step_seconds:.0%}",
        minutes,
    )
    return f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    start = time.monotonic()
    main()
    print(f"\n{time.monotonic() - start:.0f} s")
