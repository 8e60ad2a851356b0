"""Trains the pocket model on what `pocket.prepare` made, with `python -m train`, in two runs.

    python -m pocket.recipe FOLDER [--steps N] [--last-steps N]

The first run has one learning rate, the second lets it fall to nothing. The finished model, in bfloat16, is in
FOLDER/pocket. Each run goes on where it was stopped, by the same command.
"""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from idefics_jax import IdeficsForVisionText2Text, IdeficsProcessor

STEPS, LAST_STEPS = 7000, 2500
# Documents in a row do not see each other: the pictures of one would be examples to the next.
OPTIONS = """
    --trainable full --dtype float32 --frozen-dtype float32 --remat none --batch-size 16 --loss-chunk 4096
    --data.sequence-length 160 --data.max-images 6 --data.segment-masks True
    --data.loss-on answers --data.loss-on-image-tokens False --data.augment False
    --optimizer.learning-rate 7e-4 --optimizer.b2 0.98 --optimizer.weight-decay 0.05
    --eval.batches 8 --eval.answers 64 --eval.max-new-tokens 8 --log-every 20 --checkpoint.every 500
"""
FIRST = "--optimizer.schedule constant --optimizer.warmup-steps 200 --seed 1"
LAST = "--optimizer.schedule linear --optimizer.warmup-steps 50 --seed 2"


def command(folder: Path, model: Path, name: str, options: str, steps: int) -> list[str]:
    """A run of `python -m train` that begins with `model` and leaves its own in FOLDER/NAME-model."""
    data = ["--data.train", f"{folder}/train/*.tar", "--data.eval", f"{folder}/seen.jsonl"]
    files = ["--model", f"{model}", "--out", f"{folder}/{name}", "--export", f"{folder}/{name}-model"]
    every = ["--steps", str(steps), "--eval.every", str(max(1, steps // 8))]
    return ["train", *files, *data, *every, *OPTIONS.split(), *options.split()]


def run(arguments: Sequence[str]) -> None:
    """Runs it here; raises subprocess.CalledProcessError where it fails or was stopped."""
    print(shlex.join(["python", "-m", *arguments]), flush=True)
    subprocess.run([sys.executable, "-m", *arguments], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pocket.recipe", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--last-steps", type=int, default=LAST_STEPS)
    options = parser.parse_args()
    folder = options.folder
    run(command(folder, folder / "model", "first", FIRST, options.steps))
    run(command(folder, folder / "first-model", "last", LAST, options.last_steps))
    model = IdeficsForVisionText2Text.from_pretrained(folder / "last-model", dtype="bfloat16")
    model.save_pretrained(folder / "pocket")
    IdeficsProcessor.from_pretrained(folder / "last-model").save_pretrained(folder / "pocket")


if __name__ == "__main__":
    main()
