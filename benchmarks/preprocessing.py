"""Photographs to pixels, against transformers' own image processor (its Pillow backend), in turns.

python -m benchmarks.preprocessing [--rounds N]
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data
from transformers.models.idefics.image_processing_pil_idefics import IdeficsImageProcessorPil

from benchmarks.timing import pair
from idefics_jax import IdeficsImageProcessor
from idefics_jax.processing.images import open_image

SIZES = [(640, 480), (1920, 1080)]
IMAGES = 16


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.preprocessing", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    ours, reference = IdeficsImageProcessor(), IdeficsImageProcessorPil()
    print("| | idefics-jax | transformers | ratio (min to max) |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        for size in SIZES:
            file = Path(temporary) / "photo.jpg"
            Image.fromarray(data.astronaut()).resize(size).save(file, quality=90)
            for label, image in (("JPEG files", str(file)), ("Pillow images", open_image(file).convert("RGB"))):
                batch = [image] * IMAGES
                theirs = np.stack(reference.preprocess(batch, return_tensors="np"))
                np.testing.assert_allclose(ours.preprocess(batch), np.moveaxis(theirs, 1, -1), atol=1e-6)
                times = pair(
                    partial(ours.preprocess, batch), partial(reference.preprocess, batch, return_tensors="np"), rounds
                )
                speeds = [f"{IMAGES / time:.0f} per second" for time in times[:2]]
                print(f"| {label}, {size[0]} x {size[1]} | {speeds[0]} | {speeds[1]} | {times.ratios} |")


if __name__ == "__main__":
    main()
