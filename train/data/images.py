"""Image files to square bytes; they are normalised later, on the accelerator."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from idefics_jax.processing.image_processor import IdeficsImageProcessor
from idefics_jax.processing.processor import IdeficsProcessor
from idefics_jax.utils.remote import fetch

from ..config import DataConfig

SCALE = (0.9, 1.0)  # share of the image's area that a crop keeps
RATIO = (3 / 4, 4 / 3)  # width to height of a crop
TRIES = 10

Box = tuple[int, int, int, int]
ImageSource = str | Path  # what load_image reads


def load_processor(path: str, config: DataConfig) -> IdeficsProcessor:
    """Load a checkpoint's processor, which reads images as the options of the data say."""
    processor = IdeficsProcessor.from_pretrained(path)
    images = replace(processor.image_processor, fetch=fetch if config.remote_images else None)
    if config.high_depth is not None:
        images = replace(images, high_depth=config.high_depth)
    return IdeficsProcessor(images, processor.tokenizer)


def image_pixels(
    source: ImageSource, processor: IdeficsImageProcessor, random: np.random.Generator | None = None
) -> np.ndarray:
    """RGB pixels `[size, size, 3]`, uint8, of an image file or URL.

    Without `random` the bytes are those that the processor rescales and normalizes; with it, torchvision's
    `RandomResizedCrop(size, SCALE, RATIO)` goes before.

    Raises:
        FileNotFoundError, OSError, ValueError: the image cannot be read, as `load_image` says it.
    """
    image = processor.load(source)
    if random is not None:
        image = image.crop(random_box(image.width, image.height, random))
    size = processor.image_size
    return np.asarray(image.resize((size, size), Image.Resampling(processor.resample)))


def random_box(width: int, height: int, random: np.random.Generator) -> Box:
    """Left, top, right and bottom of a random crop, drawn as torchvision does: 10 tries, else the centre."""
    for _ in range(TRIES):
        area = width * height * random.uniform(*SCALE)
        ratio = math.exp(random.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left, top = random.integers(width - crop_width + 1), random.integers(height - crop_height + 1)
            return int(left), int(top), int(left) + crop_width, int(top) + crop_height
    # The largest part of the centre whose ratio is allowed.
    crop_width, crop_height = width, height
    if width / height < RATIO[0]:
        crop_height = round(width / RATIO[0])
    elif width / height > RATIO[1]:
        crop_width = round(height * RATIO[1])
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height
