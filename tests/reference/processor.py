"""What transformers' IdeficsProcessor and its Pillow image processor give for random prompts and odd images."""

import gc
import tempfile
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from tests.support.tiny_tokenizer import save_tiny_tokenizer

BATCHES = 72
IMAGE_SIZE = 2  # in the prompts: whether the right image is in the right place shows in any pixel
PIXELS_SIZE = 8  # in the images' own comparison
FRAGMENTS = [
    "User:",
    "Describe this image.",
    "  What is   this?",
    "é 猫 😀",
    "\nAssistant:",
    "\n",
    "two dogs. ",
    " ",
    "",
    "a",
]
FRAGMENTS += [
    "x</s>",
    "</s>",
    "</s> And who",
    "<end_of_utterance>\nUser:",
    "hi <fake_token_around_image> ho",
    "<s>",
    "1 + 1",
]
FRAGMENTS += ["not a url: http://example.org", "one.\ttab", "\n\nQuestion: who?", "<unk>"]


def batches(seed: int = 0, count: int = BATCHES) -> list[tuple[list[list], dict]]:
    """Random batches of 1 to 6 prompts that mix texts and images, with keyword arguments that both processors know."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        prompts = []
        for _ in range(random.integers(1, 7)):
            share = random.choice([0, 0.3, 0.8])
            prompt = [str(random.choice(FRAGMENTS)) for _ in range(random.integers(1, 7))] + ["end"]
            prompt = [flat_image(random) if random.random() < share else item for item in prompt]
            prompts.append(prompt)
        arguments = {
            "padding_side": str(random.choice(["left", "right"])),
            "add_eos_token": bool(random.random() < 0.3),
            "add_end_of_utterance_token": bool(random.random() < 0.5),
        }
        match random.integers(4):
            case 0:
                arguments |= {"padding": "longest"}
            case 1:
                arguments |= {"padding": True, "pad_to_multiple_of": int(random.choice([8, 32]))}
            case 2:
                arguments |= {"padding": "max_length", "truncation": True, "max_length": int(random.integers(4, 30))}
            case 3:
                arguments |= {"padding": "longest", "truncation": True, "max_length": int(random.integers(4, 30))}
        made.append((prompts, arguments))
    return made


def flat_image(random: np.random.Generator) -> Image.Image:
    """One colour, so that it survives any resizing."""
    return Image.new("RGB", tuple(random.integers(1, 5, 2).tolist()), tuple(random.integers(0, 256, 3).tolist()))


def flat(outputs: list[dict]) -> dict[str, np.ndarray]:
    """The outputs of many calls as few arrays; pixels channels last, and masks as small as they are."""
    arrays = {"shapes": np.array([[*output["image_attention_mask"].shape] for output in outputs], np.int32)}
    for name, dtype in [("input_ids", np.int32), ("attention_mask", np.uint8), ("image_attention_mask", np.uint8)]:
        arrays[name] = np.concatenate([np.asarray(output[name]).astype(dtype).ravel() for output in outputs])
    arrays["pixel_values"] = np.concatenate(
        [np.asarray(output["pixel_values"])[:, :, 0, 0].ravel() for output in outputs]
    )
    return arrays


def images() -> dict[str, Image.Image | np.ndarray]:
    """Images of every mode and arrays of every layout that occur, with their own traps."""
    random = np.random.default_rng(5)
    noise = random.integers(0, 256, (19, 23, 4), dtype=np.uint8)
    rgb, grey, rgba = noise[..., :3], noise[..., 0], Image.fromarray(noise)
    palette = Image.fromarray(rgb).quantize(32)
    transparent = palette.copy()
    transparent.info["transparency"] = 3
    keyed = Image.fromarray(rgb)
    keyed.info["transparency"] = tuple(rgb[0, 0].tolist())
    turned = Image.fromarray(rgb)
    turned.getexif()[0x0112] = 6  # Orientation: not looked at in an opened image
    wide = grey.astype(np.uint16) * 257
    return {
        **{mode: rgba.convert(mode) for mode in ["RGB", "L", "1", "LA", "RGBA", "PA", "RGBa", "RGBX"]},
        **{mode: Image.fromarray(rgb).convert(mode) for mode in ["CMYK", "YCbCr", "HSV", "LAB", "I", "F"]},
        "P": palette,
        "P with transparency": transparent,
        "RGB with transparency": keyed,
        "I;16": Image.fromarray(wide),
        "EXIF orientation": turned,
        "1 x 1": Image.new("RGB", (1, 1), (200, 10, 99)),
        "1 x 60": Image.fromarray(random.integers(0, 256, (60, 1, 3), dtype=np.uint8)),
        "300 x 2": Image.fromarray(random.integers(0, 256, (2, 300, 3), dtype=np.uint8)),
        "array [h, w, 3]": rgb,
        "array [3, h, w]": np.ascontiguousarray(np.moveaxis(rgb, -1, 0)),
        "array [h, w, 1]": grey[..., None],
        "array [1, h, w]": grey[None],
        "array [h, w, 4]": noise,
        "array [4, h, w]": np.moveaxis(noise, -1, 0),
        "array [3, w, 3], ambiguous": rgb[:3],
        "array [1, 1, 3], ambiguous": rgb[:1, :1],
        "array of int64": rgb.astype(np.int64),
        "array of bool": rgb > 99,
        "array of whole floats": rgb.astype(np.float32),
        "array of fractions": (rgb / 255).astype(np.float64),
        "array of fractions, RGBA": np.moveaxis((noise / 255).astype(np.float32), -1, 0),
        "array of fractions, half": (rgb / 255).astype(np.float16),
    }  # fmt: skip


def write_files(folder: Path) -> list[Path]:
    """Image files without loss, so that every decoder gives the same."""
    made, random = images(), np.random.default_rng(6)
    for name, mode in [("rgb.png", "RGB"), ("rgba.png", "RGBA"), ("grey-alpha.png", "LA"), ("sixteen.png", "I;16")]:
        made[mode].save(folder / name)
    made["P with transparency"].save(folder / "palette.gif", transparency=3)
    made["CMYK"].save(folder / "cmyk.tiff")
    made["1"].save(folder / "bits.bmp")
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        picture = Image.fromarray(random.integers(0, 256, (11, 17, 3), dtype=np.uint8))
        picture.save(folder / f"turned {orientation}.png", exif=exif)
    return sorted(folder.iterdir())


SOME = ["RGB", "array of fractions", "array of whole floats"]
VARIANTS = {  # settings of the image processor, and the images to try them on (None: all)
    "": ({}, None),
    " unscaled": ({"do_rescale": False}, SOME),
    " not normalized": ({"do_normalize": False}, SOME),
    " bilinear": ({"resample": 2, "image_mean": (0.5, 0.4, 0.3), "image_std": (0.2, 0.3, 0.4)}, SOME),
    " not resized": ({"do_resize": False}, SOME),
}


def reference_processor(folder: Path, image_size: int = IMAGE_SIZE):
    """Transformers' processor over tests/support/tiny_tokenizer.py's tokenizer.json, taken as it is."""
    from transformers import IdeficsProcessor, PreTrainedTokenizerFast
    from transformers.models.idefics.image_processing_pil_idefics import IdeficsImageProcessorPil

    save_tiny_tokenizer(folder)
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **tokens)
    return IdeficsProcessor(IdeficsImageProcessorPil(image_size=image_size), tokenizer)


def reference_outputs(processor, made: list[tuple[list[list], dict]]) -> list[dict]:
    """What transformers' processor gives for `batches`, its pixels channels last."""
    outputs = []
    for prompts, arguments in made:
        output = processor(text=prompts, return_tensors="pt", add_special_tokens=False, **arguments)
        outputs.append({**output, "pixel_values": output["pixel_values"].permute(0, 1, 3, 4, 2).numpy()})
    return outputs


def reference_pixels(images: dict, **arguments) -> dict[str, np.ndarray]:
    """What transformers' image processor gives for each image: the first `[PIXELS_SIZE, PIXELS_SIZE, 3]` of it."""
    from transformers.models.idefics.image_processing_pil_idefics import IdeficsImageProcessorPil
    from transformers.utils import logging

    logging.set_verbosity_error()  # it warns of each ambiguous array
    processor = IdeficsImageProcessorPil(image_size=PIXELS_SIZE, **arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves files of several frames open
        pixels = {name: processor.preprocess([image], return_tensors="np")[0] for name, image in images.items()}
        gc.collect()
    return {name: corner(np.moveaxis(np.asarray(image, np.float32), 0, -1)) for name, image in pixels.items()}


def corner(pixels: np.ndarray) -> np.ndarray:
    """All of an image that was resized, part of one that was not."""
    return pixels[:PIXELS_SIZE, :PIXELS_SIZE]


def record() -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        processor = reference_processor(folder)
        outputs = reference_outputs(processor, batches())
        arrays = flat(outputs)
        arrays["texts"] = np.array(processor.batch_decode([output["input_ids"][0] for output in outputs]))
        (folder / "images").mkdir()
        files = {path.name: str(path) for path in write_files(folder / "images")}
        pixels = reference_pixels(files)
    for variant, (arguments, names) in VARIANTS.items():
        made = {name: image for name, image in images().items() if names is None or name in names}
        pixels |= {f"{name}{variant}": values for name, values in reference_pixels(made, **arguments).items()}
    return arrays | {"images": np.array(list(pixels)), "pixels": np.stack(list(pixels.values()))}
