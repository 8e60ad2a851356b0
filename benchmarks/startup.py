"""Whole processes against scripts with transformers: to the first token about a photo, and captions in batches.

    python -m benchmarks.startup [--checkpoint DIR] [--rounds N]

They run in turns, files in the page cache. Ours are timed with their compilation caches filled and empty. The captions
are 36 in batches of 8, of which the last has 4, by a script that sets no cache: a user's own.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.checkpoint import save_checkpoint
from benchmarks.timing import pair, seconds

PHOTO = Path(__file__).parent.parent / "examples" / "cat.jpg"
TRANSFORMERS = """
import sys, torch
from PIL import Image
from transformers import IdeficsForVisionText2Text, IdeficsProcessor
processor = IdeficsProcessor.from_pretrained(sys.argv[1])
model = IdeficsForVisionText2Text.from_pretrained(sys.argv[1], dtype="float32")
inputs = processor(text=[["User:", Image.open(sys.argv[2]), "What is in this picture?"]], return_tensors="pt")
with torch.no_grad():
    tokens = model.generate(**inputs, max_new_tokens=1)
print(processor.batch_decode(tokens)[0])
"""
CAPTIONS = """
import sys
from PIL import Image
photo = Image.open(sys.argv[2])
prompts = [["User:", photo, f"Picture {number}: what is in it?"] for number in range(36)]
batches = [prompts[start : start + 8] for start in range(0, len(prompts), 8)]
"""
OUR_CAPTIONS = (
    CAPTIONS
    + """
from idefics_jax import IdeficsForVisionText2Text, IdeficsProcessor
processor = IdeficsProcessor.from_pretrained(sys.argv[1])
model = IdeficsForVisionText2Text.from_pretrained(sys.argv[1], dtype="float32")
for batch in batches:
    tokens = model.generate(**processor(batch), max_new_tokens=20)
    print(processor.batch_decode(tokens))
"""
)
THEIR_CAPTIONS = (
    CAPTIONS
    + """
import torch
from transformers import IdeficsForVisionText2Text, IdeficsProcessor
processor = IdeficsProcessor.from_pretrained(sys.argv[1])
model = IdeficsForVisionText2Text.from_pretrained(sys.argv[1], dtype="float32")
for batch in batches:
    with torch.no_grad():
        tokens = model.generate(**processor(text=batch, return_tensors="pt"), max_new_tokens=20)
    print(processor.batch_decode(tokens))
"""
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="keep the model here (default: a temporary directory)")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = save_checkpoint(options.checkpoint or Path(temporary) / "model")
        command = [Path(sys.executable).parent / "idefics-jax", "generate", "--model", directory, "--image", PHOTO]
        command += ["--prompt", "User:<image>What is in this picture?", "--max-new-tokens", "1"]
        theirs = [sys.executable, "-c", TRANSFORMERS, directory, PHOTO]

        def run(command, cache):
            environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
            environment.pop("JAX_COMPILATION_CACHE_DIR", None)
            subprocess.run(command, env=environment, check=True, capture_output=True)

        warm = Path(temporary) / "warm"
        times = pair(partial(run, command, warm), partial(run, theirs, warm), options.rounds)
        cold = min(seconds(partial(run, command, Path(temporary) / f"cold{n}")) for n in range(2))
        script, other = ([sys.executable, "-c", source, directory, PHOTO] for source in (OUR_CAPTIONS, THEIR_CAPTIONS))
        captions = pair(partial(run, script, warm), partial(run, other, warm), options.rounds)
        cold_captions = min(seconds(partial(run, script, Path(temporary) / f"empty{n}")) for n in range(2))
    print("| | idefics-jax | transformers | ratio (min to max) |\n|---|---|---|---|")
    print(f"| start to first token | {times.ours:.1f} s | {times.reference:.1f} s | {times.ratios} |")
    print(f"| 36 captions in batches of 8 | {captions.ours:.1f} s | {captions.reference:.1f} s | {captions.ratios} |")
    print(f"\nThe first time ever, with nothing compiled before: {cold:.1f} s and {cold_captions:.1f} s.")


if __name__ == "__main__":
    main()
