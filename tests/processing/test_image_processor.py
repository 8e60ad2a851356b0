"""Images become the reference's pixels, whatever their mode, layout or source; and bad ones give one clear sentence."""

import base64
import functools
import json
import multiprocessing
import pickle
import warnings

import numpy as np
import pytest
from PIL import Image

from idefics_jax.processing.image_processor import IdeficsImageProcessor
from tests.reference import record
from tests.reference.processor import PIXELS_SIZE, VARIANTS, corner, images, write_files

PROCESSOR = IdeficsImageProcessor(image_size=PIXELS_SIZE)
BASE_CONFIG = {  # of the published checkpoints, as transformers 4.31 wrote it
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_num_channels": 3,
    "image_processor_type": "IdeficsImageProcessor",
    "image_size": 224,
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


@functools.cache
def recorded() -> dict[str, np.ndarray]:
    arrays = record.load("processor")
    return dict(zip(arrays["images"].tolist(), arrays["pixels"], strict=True))


@pytest.mark.parametrize("name", images())
@pytest.mark.filterwarnings("ignore:.*16-bit and float pixels become white or black")
@pytest.mark.filterwarnings("ignore:.* holds fractions of 1")
def test_pixels_are_the_references(name):
    pixels = PROCESSOR.preprocess(images()[name])
    assert pixels.shape == (1, PIXELS_SIZE, PIXELS_SIZE, 3)
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels[0], recorded()[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if variant])
@pytest.mark.filterwarnings("ignore:.* holds fractions of 1")
def test_settings_do_what_the_references_do(variant):
    arguments, names = VARIANTS[variant]
    processor = IdeficsImageProcessor(**{"image_size": PIXELS_SIZE} | arguments)
    for name in names:
        np.testing.assert_allclose(
            corner(processor.preprocess(images()[name])[0]), recorded()[name + variant], rtol=0, atol=1e-6
        )


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.filterwarnings("ignore:.*16-bit and float pixels become white or black")
def test_files_and_data_urls_give_the_references_pixels(tmp_path):
    for path in write_files(tmp_path):
        url = f"data:image/{path.suffix[1:]};base64,{base64.b64encode(path.read_bytes()).decode()}"
        for pixels in PROCESSOR.preprocess([path, str(path), url]):
            np.testing.assert_allclose(pixels, recorded()[path.name], rtol=0, atol=1e-6, err_msg=path.name)


def test_a_file_is_turned_by_its_exif_orientation_and_an_opened_image_is_not(tmp_path):
    write_files(tmp_path)
    path = tmp_path / "turned 6.png"
    from_file, opened = PROCESSOR.preprocess([path, Image.open(path)])
    upright = Image.open(path).transpose(Image.Transpose.ROTATE_270)
    np.testing.assert_array_equal(from_file, PROCESSOR.preprocess(upright)[0])
    assert np.abs(from_file - opened).max() > 0.1


@pytest.mark.filterwarnings("ignore:.*16-bit and float pixels become white or black")
def test_many_images_give_what_each_alone_gives():
    made = [image for name, image in images().items() if "fractions" not in name]
    together = PROCESSOR.preprocess(made)
    for image, pixels in zip(made, together, strict=True):
        np.testing.assert_array_equal(PROCESSOR.preprocess(image)[0], pixels)
    assert PROCESSOR.preprocess([]).shape == (0, PIXELS_SIZE, PIXELS_SIZE, 3)


@pytest.mark.filterwarnings("ignore:.*16-bit and float pixels become white or black")
def test_the_arguments_are_not_changed():
    made = {name: image for name, image in images().items() if "fractions" not in name}
    before = {name: np.array(image) for name, image in made.items()}
    PROCESSOR.preprocess(list(made.values()))
    for name, image in made.items():
        np.testing.assert_array_equal(np.array(image), before[name])


def test_fractions_of_one_are_warned_of():
    with pytest.warns(
        UserWarning, match=r"^Image 0 holds fractions of 1 and is multiplied by rescale_factor all the same"
    ):
        PROCESSOR.preprocess(images()["array of fractions"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        IdeficsImageProcessor(image_size=PIXELS_SIZE, do_rescale=False).preprocess(images()["array of fractions"])


def test_a_grey_array_without_channels_is_the_grey_image():
    grey = np.asarray(images()["L"])
    np.testing.assert_array_equal(PROCESSOR.preprocess(grey), PROCESSOR.preprocess(images()["L"]))


def test_another_size_than_the_models():
    assert PROCESSOR.preprocess(images()["RGB"], image_size=5).shape == (1, 5, 5, 3)


def test_image_transform_replaces_every_step():
    picture = images()["RGBA"]

    def first_pixels(image: Image.Image) -> np.ndarray:
        assert image.mode == "RGB"
        return np.asarray(image)[:4, :5] / 2.0

    pixels = PROCESSOR.preprocess([picture, picture], image_transform=first_pixels)
    channels_first = PROCESSOR.preprocess(
        picture, image_transform=lambda image: np.moveaxis(first_pixels(image), -1, 0)
    )
    assert pixels.shape == (2, 4, 5, 3)
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels[:1], channels_first)
    with pytest.raises(ValueError, match=r"image_transform gave shape \(4, 5\); it must give \[height, width, 3\]"):
        PROCESSOR.preprocess(picture, image_transform=lambda image: first_pixels(image)[..., 0])


def test_workers_of_another_process_can_use_it():
    picture = images()["RGB"]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pixels = pool.apply(PROCESSOR.preprocess, (picture,))
    np.testing.assert_array_equal(pixels, PROCESSOR.preprocess(picture))
    assert pickle.loads(pickle.dumps(PROCESSOR)) == PROCESSOR


@pytest.mark.parametrize(
    "config",
    [
        BASE_CONFIG,
        BASE_CONFIG | {"size": {"height": 224, "width": 224}, "resample": 3, "do_resize": True, "do_pad": None},
        {"size": {"height": 224, "width": 224}, "do_center_crop": False, "data_format": "channels_first"},
        {"size": 224, "rescale_factor": 1 / 255, "crop_size": None, "_valid_processor_keys": ["images"]},
        {},
    ],
)
def test_configurations_of_every_age_are_read(tmp_path, config):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    assert IdeficsImageProcessor.from_pretrained(tmp_path) == IdeficsImageProcessor()


def test_configuration_inside_processor_config_is_read(tmp_path):
    config = {"image_processor": {"size": {"height": 7, "width": 7}}, "processor_class": "IdeficsProcessor"}
    (tmp_path / "processor_config.json").write_text(json.dumps(config))
    assert IdeficsImageProcessor.from_pretrained(tmp_path).image_size == 7


def test_save_and_load(tmp_path):
    processor = IdeficsImageProcessor(30, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), 2, False, False, 0.5, False)
    processor.save_pretrained(tmp_path / "new")
    assert IdeficsImageProcessor.from_pretrained(tmp_path / "new") == processor


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_center_crop": True}, "do_center_crop=True is not implemented"),
        ({"image_num_channels": 1}, "image_num_channels=1 is not implemented"),
        ({"do_convert_rgb": False}, "do_convert_rgb=False is not implemented"),
        ({"do_image_splitting": True}, "do_image_splitting=True is not implemented"),
        ({"image_size": None, "size": {"shortest_edge": 224}}, "size={'shortest_edge': 224} is not implemented"),
        ({"image_size": None, "size": {"height": 2, "width": 3}}, "size={'height': 2, 'width': 3} is not implemented"),
        ({"image_size": 0}, "image_size=0 must be a whole number from 1 to 4,096"),
        ({"image_size": 30_000}, "image_size=30000 must be a whole number from 1 to 4,096"),
        ({"image_size": None, "size": {"height": 30_000, "width": 30_000}}, "image_size=30000 must be a whole number"),
        ({"image_size": True}, "image_size=True must be a whole number"),
        ({"image_size": 224.0}, r"image_size=224\.0 must be a whole number"),
        ({"high_depth": "stretch"}, "high_depth='stretch' is neither clip nor scale"),
        ({"image_mean": [0.5, 0.5]}, r"image_mean=\[0.5, 0.5\] must have 3 values"),
        ({"resample": 9}, "resample=9 is not one of Pillow's filters"),
    ],
)
def test_a_configuration_that_is_not_implemented_is_named(change, message):
    with pytest.raises(ValueError, match=f"^The image processor's {message}"):
        IdeficsImageProcessor.from_dict(BASE_CONFIG | change)


def test_a_configuration_that_is_missing_or_broken_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no preprocessor_config\.json, which says how images"):
        IdeficsImageProcessor.from_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"preprocessor_config\.json is not valid JSON"):
        IdeficsImageProcessor.from_pretrained(tmp_path)


def test_images_that_end_up_with_different_sizes():
    processor = IdeficsImageProcessor(do_resize=False)
    with pytest.raises(ValueError, match=r"^The images end up with different sizes \(2 x 4, 5 x 1\); resize them"):
        processor.preprocess([np.zeros((5, 1, 3), np.uint8), np.zeros((2, 4, 3), np.uint8)])


@pytest.mark.torch
def test_photographs_live(tmp_path):
    """Real photographs at the real size, as transformers' Pillow image processor prepares them."""
    pytest.importorskip("torch")
    from skimage import data
    from transformers.models.idefics.image_processing_pil_idefics import IdeficsImageProcessorPil

    photos = [Image.fromarray(image()) for image in (data.astronaut, data.chelsea, data.coffee, data.camera, data.page)]
    for number, image in enumerate(photos):
        image.save(tmp_path / f"{number}.jpg", quality=80)
    sources = photos + [str(tmp_path / f"{number}.jpg") for number in range(len(photos))]
    theirs = IdeficsImageProcessorPil().preprocess(sources, return_tensors="np")
    ours = IdeficsImageProcessor().preprocess(sources)
    np.testing.assert_allclose(ours, np.moveaxis(np.stack(theirs), 1, -1), rtol=0, atol=1e-6)


def test_a_picture_that_several_prompts_share_is_read_once(tmp_path):
    """Pillow reads a file when its picture is first used, here by several threads."""
    random = np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)
    Image.fromarray(random).save(tmp_path / "photo.png")
    for _ in range(5):
        with Image.open(tmp_path / "photo.png") as photo:
            pixels = IdeficsImageProcessor(image_size=8).preprocess([photo] * 8)
        assert (pixels == pixels[0]).all()
