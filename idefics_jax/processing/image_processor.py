"""Images to the vision tower's pixels: RGB, resized to a square, rescaled and normalised as CLIP's."""

import contextlib
import json
import math
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np
from PIL import Image

from idefics_jax.processing.images import (
    Fetch,
    HighDepth,
    ImageInput,
    array_to_bytes,
    array_to_rgb,
    load_image,
    short_name,
    to_rgb,
)
from idefics_jax.utils.commit import committed
from idefics_jax.utils.hub import checkpoint_directory
from idefics_jax.utils.json_files import check_types, read_object
from idefics_jax.utils.paths import PathLike
from idefics_jax.utils.remote import fetch

FILES = ["preprocessor_config.json", "processor_config.json"]
NUMBERS = float | list | tuple
# What transformers also writes: values that must be these for this code to be right, ...
FIXED = {"do_center_crop": False, "do_pad": False, "do_convert_rgb": True, "image_num_channels": 3}
# ... and what says nothing about the pixels.
LABELS = {"image_processor_type", "feature_extractor_type", "processor_class", "auto_map", "return_tensors", "device"}
LABELS |= {"data_format", "input_data_format", "disable_grouping", "backend", "crop_size", "pad_size"}
LABELS |= {"_valid_processor_keys"}
MAX_SIZE = 4096  # pixels of a side: 200 MB for an image
BYTES = np.arange(256, dtype=np.uint8)[:, None].repeat(3, axis=1)  # every byte in each of the channels


@dataclass(frozen=True)
class IdeficsImageProcessor:
    """Immutable, picklable, free of JAX and torch: numpy and Pillow, for data workers too.

    Fields, as in `preprocessor_config.json`; the defaults are the published checkpoints':
        image_size: height and width of the output, to which the image is resized whatever its shape was.
        image_mean, image_std: per channel, of pixels in [0, 1].
        resample: Pillow's number for the filter, 3 is bicubic.
        do_resize, do_rescale, rescale_factor, do_normalize: the steps.
        high_depth: treatment of 16-bit and float pixels in files and Pillow images: "clip" at 0 and 255, as the
            reference does, or "scale" to that range (`images.to_eight_bits`). Ours; saved where it is not "clip".

    And one that is not saved:
        fetch: reads http(s) addresses, by default public ones only (`remote.fetch`); None refuses them.
    """

    image_size: int = 224
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    resample: int = 3
    do_resize: bool = True
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    high_depth: HighDepth = "clip"
    fetch: Fetch | None = field(default=fetch, compare=False, repr=False)

    def preprocess(
        self,
        images: ImageInput | Sequence[ImageInput],
        image_size: int | None = None,
        image_transform: Callable[[Image.Image], Any] | None = None,
    ) -> np.ndarray:
        """Pixels `[images, height, width, 3]`, float32, of one image or a sequence of them; works in threads.

        An image is a Pillow image, an array (`[h, w, c]`, `[c, h, w]` or `[h, w]`), a path, or an http(s) or `data:`
        URL. As in the reference, an image read from a file or URL is turned upright by its EXIF orientation and loses
        its alpha channel, while a Pillow image is taken as it lies, and its transparency is laid on white. And as
        there, an array of fractions of 1 is multiplied by `rescale_factor` like any other, which makes it all but
        black: a warning says so, and a processor with `do_rescale=False` takes it as it should be.

        `image_size` overrides the processor's. `image_transform` (training) takes the RGB Pillow image, of any size,
        and gives the finished pixels, `[h, w, 3]` or `[3, h, w]`; no other step is applied then.

        Raises:
            FileNotFoundError, OSError: a file or URL that cannot be read.
            ValueError: not an image, damaged, of a wrong shape, or images that end up with different sizes.
        """
        if isinstance(images, str) or not isinstance(images, Sequence):
            images = [images]
        processor = self if image_size is None else replace(self, image_size=_checked_size(image_size))
        table = processor._normalize(BYTES)

        def process(numbered: tuple[int, ImageInput]) -> np.ndarray:
            number, image = numbered
            if image_transform is not None:
                return processor._transform(image_transform, image, f"Image {number}")
            return processor._process(image, f"Image {number}", table)

        once: set[int] = set()
        for image in images:
            if isinstance(image, Image.Image) and id(image) in once:
                with contextlib.suppress(Exception):  # what is wrong with it is said below
                    image.load()  # Pillow reads a file when it is first used, which two threads must not do at once
            once.add(id(image))
        workers = min(len(images), os.cpu_count() or 1)
        if workers < 2:
            pixels = [process(numbered) for numbered in enumerate(images)]
        else:  # Pillow decodes and resizes without Python's lock
            with ThreadPoolExecutor(workers) as pool:
                pixels = list(pool.map(process, enumerate(images)))
        if not pixels:
            return np.zeros((0, processor.image_size, processor.image_size, 3), np.float32)
        if len(shapes := {image.shape[:2] for image in pixels}) > 1:
            sizes = ", ".join(f"{height} x {width}" for height, width in sorted(shapes))
            raise ValueError(f"The images end up with different sizes ({sizes}); resize them all to one.")
        return np.stack(pixels)

    def _process(self, image: ImageInput, name: str, table: np.ndarray) -> np.ndarray:
        """Return an image's pixels `[height, width, 3]`; `table` `[256, 3]` maps each byte of each channel."""
        if isinstance(image, np.ndarray):
            array = array_to_rgb(image, name)
            if not self.do_resize and array.dtype != np.uint8:
                return self._normalize(array)
            array, fractions = array_to_bytes(array, name)
            if fractions:  # the reference resizes them as bytes too, but rescales them back first
                table = self._normalize((BYTES.astype(np.float64) * (1 / 255)).astype(np.float32))
                if self.do_rescale:
                    message = (
                        f"{name} holds fractions of 1 and is multiplied by rescale_factor all the same, as in the "
                    )
                    warnings.warn(
                        message + "reference; give bytes, or use a processor with do_rescale=False.", stacklevel=3
                    )
            image = Image.fromarray(np.ascontiguousarray(array))
        else:
            image = self._to_pillow(image, name)
        if self.do_resize:
            image = image.resize((self.image_size, self.image_size), Image.Resampling(self.resample))
        return _look_up(table, np.asarray(image))

    def _to_pillow(self, image: Image.Image | str | Path, name: str) -> Image.Image:
        """An RGB Pillow image; `name` is what errors call one that came without a file name."""
        if isinstance(image, Image.Image):
            return to_rgb(image, short_name(getattr(image, "filename", "") or name), self.high_depth)
        return self.load(image)

    def load(self, source: str | Path) -> Image.Image:
        """Load the RGB image of a file, URL or base64 as `images.load_image` does, by this processor's settings."""
        # Twice, as in the reference: a key color outlives the first conversion.
        return to_rgb(load_image(source, self.fetch, self.high_depth), short_name(source))

    def _transform(self, image_transform: Callable[[Image.Image], Any], image: ImageInput, name: str) -> np.ndarray:
        """Return the result of the user's transform as `[height, width, 3]` float32."""
        if isinstance(image, np.ndarray):
            image = Image.fromarray(np.ascontiguousarray(array_to_bytes(array_to_rgb(image, name), name)[0]))
        pixels = np.asarray(image_transform(self._to_pillow(image, name)), dtype=np.float32)
        if pixels.ndim == 3 and pixels.shape[0] == 3:
            pixels = np.moveaxis(pixels, 0, -1)
        if pixels.ndim != 3 or pixels.shape[-1] != 3:
            raise ValueError(
                f"image_transform gave shape {pixels.shape}; it must give [height, width, 3] or [3, height, width]."
            )
        return pixels

    def _normalize(self, pixels: np.ndarray) -> np.ndarray:
        """`[..., 3]` of any dtype rescaled and normalised, float32, in the reference's order and precision."""
        if self.do_rescale:
            pixels = (pixels.astype(np.float64) * self.rescale_factor).astype(np.float32)
        pixels = pixels.astype(np.float32)
        if self.do_normalize:
            pixels = (pixels - np.asarray(self.image_mean, np.float32)) / np.asarray(self.image_std, np.float32)
        return pixels

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """From the contents of a `preprocessor_config.json`, as transformers 4.31 to 5.x writes it.

        Raises:
            ValueError: a value, named, that is not implemented here.
        """
        known = {field.name for field in fields(cls)} - {"fetch"}
        flags = dict.fromkeys((name for name in known if name.startswith("do_")), bool)
        numbers = {"rescale_factor": float, "image_mean": NUMBERS, "image_std": NUMBERS}
        check_types(values, {**flags, **numbers}, "The image processor")
        chosen = {name: value for name, value in values.items() if name in known and value is not None}
        for name, value in values.items():
            if value is None or name in known or name in LABELS or name == "size":
                continue
            if name not in FIXED or value != FIXED[name]:
                raise ValueError(f"The image processor's {name}={value!r} is not implemented; see {cls.__name__}.")
        size = values.get("size")
        if size is not None and "image_size" not in chosen:
            if isinstance(size, dict):
                if size.keys() != {"height", "width"} or size["height"] != size["width"]:
                    raise ValueError(f"The image processor's size={size!r} is not implemented; images become squares.")
                size = size["height"]
            chosen["image_size"] = size
        for name in ("image_mean", "image_std"):
            if name in chosen:
                value = chosen[name]
                parts = value if isinstance(value, list | tuple) else [value]
                if not all(type(x) in (int, float) and math.isfinite(x) and (x or name == "image_mean") for x in parts):
                    raise ValueError(
                        f"The image processor's {name}={value!r} must hold finite numbers, and no std of 0."
                    )
                chosen[name] = (float(value),) * 3 if isinstance(value, int | float) else tuple(map(float, value))
                if len(chosen[name]) != 3:
                    raise ValueError(f"The image processor's {name}={value!r} must have 3 values, one per channel.")
        if "image_size" in chosen:
            _checked_size(chosen["image_size"])
        if chosen.get("high_depth", "clip") not in get_args(HighDepth):
            raise ValueError(f"The image processor's high_depth={chosen['high_depth']!r} is neither clip nor scale.")
        if chosen.get("resample", 3) not in list(Image.Resampling):
            raise ValueError(f"The image processor's resample={chosen['resample']!r} is not one of Pillow's filters.")
        return cls(**chosen)

    def to_dict(self) -> dict[str, Any]:
        """The contents of `preprocessor_config.json`, for every version of transformers."""
        size = {"height": self.image_size, "width": self.image_size}
        labels = {"image_processor_type": "IdeficsImageProcessor", "processor_class": "IdeficsProcessor"}
        values = asdict(self) | {"image_mean": list(self.image_mean), "image_std": list(self.image_std)}
        del values["fetch"]
        if self.high_depth == "clip":  # transformers knows no other
            del values["high_depth"]
        return values | {"size": size, "image_num_channels": 3, "do_convert_rgb": True} | labels

    @classmethod
    def from_pretrained(cls, path_or_id: PathLike) -> Self:
        """From a checkpoint's directory or hub id: `preprocessor_config.json`, or 5.x's `processor_config.json`.

        Raises:
            FileNotFoundError: neither is there.
            ValueError: a value that is not implemented, or a file that is not JSON.
        """
        directory = checkpoint_directory(path_or_id, FILES)
        for name in FILES:
            if (directory / name).exists():
                values = read_object(directory / name)
                if name != FILES[0]:
                    check_types(values, {"image_processor": dict}, directory / name)
                    values = values.get("image_processor")
                if values is not None:
                    try:
                        return cls.from_dict(values)
                    except ValueError as error:
                        raise ValueError(f"{directory / name}: {error}") from error
        raise FileNotFoundError(f"{directory} has no {FILES[0]}, which says how images are preprocessed.")

    def save_pretrained(self, directory: PathLike) -> None:
        """Write `preprocessor_config.json` into `directory`, which is made where it is missing.

        Raises:
            OSError: the directory cannot be written; what was in it is unchanged.
        """
        with committed(directory) as folder:
            text = json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"
            (folder / FILES[0]).write_text(text, encoding="utf-8")


def _checked_size(size: Any) -> int:
    """A size that images can be resized to.

    Raises:
        ValueError: it is no whole number from 1 to `MAX_SIZE`.
    """
    if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= MAX_SIZE:
        raise ValueError(f"The image processor's image_size={size!r} must be a whole number from 1 to {MAX_SIZE:,}.")
    return size


def _look_up(table: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """`table` `[256, 3]` at the bytes `[height, width, 3]`: the very floats of computing each, sooner."""
    found = np.empty(pixels.shape, np.float32)
    for channel, values in enumerate(np.ascontiguousarray(table.T)):
        np.take(values, pixels[..., channel], out=found[..., channel], mode="clip")  # "clip": no check, no buffer
    return found
