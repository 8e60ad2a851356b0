"""From starting the process to the first token, about a photo: the command line against a script with transformers.

    python -m benchmarks.startup [--checkpoint DIR] [--rounds N]

Whole processes, in turns, files in the page cache. Ours is timed with its compilation cache filled and empty.
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
            environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)}
            subprocess.run(command, env=environment, check=True, capture_output=True)

        warm = Path(temporary) / "warm"
        times = pair(partial(run, command, warm), partial(run, theirs, warm), options.rounds)
        cold = min(seconds(partial(run, command, Path(temporary) / f"cold{n}")) for n in range(2))
    print("| | idefics-jax | transformers | ratio (min to max) |\n|---|---|---|---|")
    print(f"| start to first token | {times.ours:.1f} s | {times.reference:.1f} s | {times.ratios} |")
    print(f"\nThe first time ever, with nothing compiled before: {cold:.1f} s.")


if __name__ == "__main__":
    main()
