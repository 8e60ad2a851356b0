"""Trains the pocket model on what `pocket.prepare` made: its vision tower alone, then all of it, by `python -m train`.

    python -m pocket.recipe FOLDER

Names alone, then everything, yes and no alone, and everything again: where all questions come at once from the start,
this small decoder learns what it can tell without looking closely, and neither names nor to compare. The finished
model, in bfloat16, is in FOLDER/pocket. What is finished is not done again, and training goes on where it was stopped,
by the same command.
"""

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from idefics_jax import IdeficsForVisionText2Text, IdeficsProcessor

# Documents in a row do not see each other: the pictures of one would be examples to the next.
OPTIONS = """
    --trainable full --dtype float32 --frozen-dtype float32 --remat none --batch-size 16 --loss-chunk 4096
    --data.max-images 6 --data.segment-masks True --data.loss-on answers --data.loss-on-image-tokens False
    --data.augment False --optimizer.warmup-steps 50 --optimizer.b2 0.98 --optimizer.weight-decay 0.05
    --mesh.data 2 --mesh.fsdp 1 --log-every 25 --checkpoint.every 400
"""


class Run(NamedTuple):
    """A run of `python -m train`: where it begins, what it leaves, on what and how (paths are in the folder)."""

    start: str
    name: str
    data: tuple[str, ...]
    options: str


RUNS = (
    Run(
        "tower-model",
        "names",
        ("names.tar",),
        "--steps 450 --data.sequence-length 112 --optimizer.schedule constant --optimizer.learning-rate 7e-4",
    ),
    Run(
        "names",
        "all",
        ("train/*.tar",),
        "--steps 1900 --data.sequence-length 160 --optimizer.schedule linear --optimizer.learning-rate 7e-4",
    ),
    Run(
        "all",
        "yes-no",
        ("yes-no.tar=0.75", "names.tar=0.25"),
        "--steps 750 --data.sequence-length 128 --optimizer.schedule linear --optimizer.learning-rate 7e-4",
    ),
    Run(
        "yes-no",
        "trained",
        ("train/*.tar=0.8", "yes-no.tar=0.2"),
        "--steps 480 --data.sequence-length 160 --optimizer.schedule linear --optimizer.learning-rate 5e-4",
    ),
)
# A core for each half of a batch is faster than both for all of it.
TWO_DEVICES = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}


def run(module: str, *arguments: str | Path) -> None:
    """Runs `python -m MODULE`; raises subprocess.CalledProcessError where it fails or was stopped."""
    command = ["-m", module, *map(str, arguments)]
    print(shlex.join(["python", *command]), flush=True)
    subprocess.run([sys.executable, *command], check=True, env=os.environ | TWO_DEVICES)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pocket.recipe", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    if not (folder / "tower-model" / "config.json").exists():
        run("pocket.tower", folder)
    for start, name, data, options in RUNS:
        files = ["--model", folder / start, "--out", folder / f"{name}-run", "--export", folder / name]
        run("train", *files, "--data.train", *[f"{folder}/{part}" for part in data], *options.split(), *OPTIONS.split())
    model = IdeficsForVisionText2Text.from_pretrained(folder / "trained", dtype="bfloat16")
    model.save_pretrained(folder / "pocket")
    IdeficsProcessor.from_pretrained(folder / "trained").save_pretrained(folder / "pocket")


if __name__ == "__main__":
    main()
