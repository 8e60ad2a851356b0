"""Trains the pocket model on what `pocket.prepare` made: its vision tower alone, then all of it, by `python -m train`.

    python -m pocket.recipe FOLDER

One skill comes after the other, names, places, yes and no, and then everything: where all questions come at once from
the start, this small decoder learns what it can tell without looking closely, and neither names nor to compare. The
tower stays as it is at first, since it would unlearn what it sees in styles that it does not know; then it learns,
a little, what it was not taught: where things are, and the colour behind them. The finished model, in bfloat16, is in
FOLDER/pocket. What is finished is not done again, and training goes on where it was stopped, by the same command.
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
    --dtype float32 --frozen-dtype float32 --remat none --batch-size 16 --loss-chunk 4096
    --data.max-images 6 --data.segment-masks True --data.loss-on answers --data.loss-on-image-tokens False
    --data.augment False --optimizer.warmup-steps 50 --optimizer.b2 0.98 --optimizer.weight-decay 0.05
    --mesh.data 2 --mesh.fsdp 1 --log-every 25 --checkpoint.every 400
"""
CONSTANT, LINEAR = (f"--optimizer.schedule {name} --optimizer.learning-rate" for name in ("constant", "linear"))


class Run(NamedTuple):
    """A run of `python -m train`: where it begins, what it leaves, on what and how (paths are in the folder)."""

    start: str
    name: str
    data: tuple[str, ...]
    options: str


FROZEN_TOWER = "--trainable frozen-backbones"  # the decoder's layers train: the model's config excepts them
RUNS = (
    Run(
        "tower-model",
        "names",
        ("names.tar",),
        f"{FROZEN_TOWER} --steps 400 --data.sequence-length 112 {CONSTANT} 7e-4",
    ),
    Run(
        "names",
        "places",
        ("places.tar=0.6", "names.tar=0.4"),
        f"{FROZEN_TOWER} --steps 600 --data.sequence-length 128 {CONSTANT} 7e-4",
    ),
    Run(
        "places",
        "yes-no",
        ("yes-no.tar=0.6", "places.tar=0.2", "names.tar=0.2"),
        f"{FROZEN_TOWER} --steps 900 --data.sequence-length 128 {CONSTANT} 7e-4",
    ),
    Run(
        "yes-no",
        "all",
        ("train/*.tar=0.7", "yes-no.tar=0.2", "places.tar=0.1"),
        f"{FROZEN_TOWER} --steps 2500 --data.sequence-length 160 {LINEAR} 7e-4",
    ),
    Run(
        "all",
        "where",
        ("where.tar=0.5", "backgrounds.tar=0.2", "yes-no.tar=0.15", "names.tar=0.15"),
        f"--trainable full --steps 700 --data.sequence-length 128 {CONSTANT} 5e-4",
    ),
    Run(
        "where",
        "whole",
        ("train/*.tar=0.4", "where.tar=0.25", "yes-no.tar=0.2", "names.tar=0.15"),
        f"--trainable full --steps 1200 --data.sequence-length 160 {LINEAR} 4e-4",
    ),
    Run(
        "whole",
        "trained",
        ("train/*.tar=0.35", "yes-no.tar=0.5", "where.tar=0.15"),
        f"{FROZEN_TOWER} --steps 1600 --data.sequence-length 144 {LINEAR} 7e-4",
    ),
)
# A core for each half of a batch is faster than both for all of it, and large pages are a third faster than small ones.
FASTER = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def run(module: str, *arguments: str | Path) -> None:
    """Runs `python -m MODULE`; raises subprocess.CalledProcessError where it fails or was stopped."""
    command = ["-m", module, *map(str, arguments)]
    print(shlex.join(["python", *command]), flush=True)
    subprocess.run([sys.executable, *command], check=True, env=os.environ | FASTER)


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
