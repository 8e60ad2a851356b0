"""Pixels, against the library's image processor and torchvision's rules."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from idefics_jax.processing.image_processor import IdeficsImageProcessor
from idefics_jax.processing.processor import IdeficsProcessor
from tests.support.tiny_processor import tiny_processor
from train.config import DataConfig
from train.data.images import RATIO, SCALE, image_pixels, load_processor, random_box


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.jpg"
    Image.fromarray(data.astronaut()[:300]).save(path)
    return path


def test_without_a_crop_the_bytes_are_the_image_processors(photo: Path, tmp_path: Path):
    palette = tmp_path / "palette.png"
    Image.fromarray(data.astronaut()[:64]).convert("P").save(palette, transparency=3)
    processor = IdeficsImageProcessor(do_rescale=False, do_normalize=False)
    for path in (photo, palette):
        pixels = image_pixels(path, IdeficsImageProcessor())
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, processor.preprocess([path])[0])


def test_a_crop_is_cut_out_and_resized(photo: Path):
    box = random_box(512, 300, np.random.default_rng([1, 2, 3]))
    expected = Image.open(photo).convert("RGB").crop(box).resize((32, 32), Image.Resampling.BICUBIC)
    processor = IdeficsImageProcessor(32)
    for _ in range(2):
        pixels = image_pixels(photo, processor, np.random.default_rng([1, 2, 3]))
        np.testing.assert_array_equal(pixels, np.asarray(expected))


@pytest.mark.parametrize(("width", "height"), [(640, 480), (400, 400), (3, 2), (1, 1)])
def test_crops_keep_their_share_and_ratio(width: int, height: int):
    random = np.random.default_rng(0)
    boxes = [random_box(width, height, random) for _ in range(300)]
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        if width > 100:
            across, down = right - left, bottom - top
            assert SCALE[0] - 0.01 <= across * down / (width * height) <= SCALE[1]
            assert RATIO[0] * 0.99 <= across / down <= RATIO[1] * 1.01
    if width > 100:
        assert len(set(boxes)) > 150


@pytest.mark.parametrize(("width", "height", "box"), [(100, 10, (43, 0, 56, 10)), (10, 100, (0, 43, 10, 56))])
def test_an_image_that_no_crop_fits_is_cut_at_its_centre(width: int, height: int, box: tuple[int, int, int, int]):
    assert random_box(width, height, np.random.default_rng(0)) == box


def test_boxes_are_torchvisions():
    """Its `get_params`, written out with the numbers that the generator gives."""
    random, again = np.random.default_rng(5), np.random.default_rng(5)
    for _ in range(100):
        box = random_box(300, 280, random)
        for _ in range(10):
            area = 300 * 280 * again.uniform(0.9, 1.0)
            ratio = math.exp(again.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if w <= 300 and h <= 280:
                j, i = again.integers(0, 300 - w + 1), again.integers(0, 280 - h + 1)
                assert box == (j, i, j + w, i + h)
                break
        else:
            assert box == (0, 0, 300, 280)  # its ratio is allowed, so it is taken whole


def test_training_fetches_nothing_unless_asked(tmp_path: Path):
    IdeficsProcessor(IdeficsImageProcessor(), tiny_processor().tokenizer).save_pretrained(tmp_path)
    address = "http://127.0.0.1:9/x.png"
    with pytest.raises(ValueError, match="remote images are off; give the file, or allow them with --remote-images"):
        image_pixels(address, load_processor(str(tmp_path), DataConfig()).image_processor)
    asked = load_processor(str(tmp_path), DataConfig(remote_images=True, high_depth="scale")).image_processor
    assert asked.high_depth == "scale"
    with pytest.raises(OSError, match="which is no public address"):
        image_pixels(address, asked)
