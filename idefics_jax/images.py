"""Reading images: from files, URLs and arrays to RGB, as the reference does, with one clear error for each mishap."""

import base64
import binascii
import http.client
import io
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from idefics_jax.paths import as_path

ImageInput = Image.Image | np.ndarray | str | Path

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+|data:image/\S+", re.ASCII)
# Pillow's formats that are read, and the endings of their files. All are decoded in this process: PostScript is left
# out because Pillow gives it to Ghostscript, IPTC because it can hold PostScript, and WMF, HDF5, GRIB, BUFR and MPEG
# because Pillow needs another program or library for them.
FORMATS = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif"),
    "PNG": ("png", "apng"),
    "WEBP": ("webp",),
    "GIF": ("gif",),
    "BMP": ("bmp",),
    "TIFF": ("tif", "tiff"),
    "PPM": ("ppm", "pgm", "pbm", "pnm", "pfm"),
    "AVIF": ("avif", "avifs"),
    "JPEG2000": ("jp2", "j2k", "jpc", "jpf", "jpx", "j2c"),
    "MPO": ("mpo",),
    "ICO": ("ico",),
    "CUR": ("cur",),
    "ICNS": ("icns",),
    "DIB": ("dib",),
    "DDS": ("dds",),
    "PCX": ("pcx",),
    "PSD": ("psd",),
    "QOI": ("qoi",),
    "SGI": ("sgi", "rgb", "rgba", "bw"),
    "SUN": ("ras",),
    "XBM": ("xbm",),
    "XPM": ("xpm",),
    "TGA": ("tga", "icb", "vda", "vst"),
    "HEIF": ("heic", "heics", "heif", "heifs", "hif"),  # with pillow-heif
    "JXL": ("jxl",),  # with pillow-jxl-plugin
}
#: Endings of image files, without the dot and in lower case: of all that `load_image` reads, and of those that it
#: refuses by name, so that none of them is taken for a text.
IMAGE_SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes) | {"eps", "svg", "wmf"}
CONVERT = "which is not read; convert it to PNG or JPEG"
OTHERS = {  # how files begin that are often given as images, and what they are
    rb"%!PS|\xc5\xd0\xd3\xc6": f"PostScript, {CONVERT}",
    rb"%PDF": f"a PDF, {CONVERT}",
    rb"(<\?xml.*?)?<svg": f"an SVG drawing, {CONVERT}",
    rb"....ftyp(hei|hev|mif|msf)": f"HEIC, {CONVERT}",
    rb"(....JXL |\xff\x0a)": f"JPEG XL, {CONVERT}",
    rb"<!doctype html|<html": "a web page, not an image",
    rb"version https://git-lfs": "a git-lfs pointer, not the image; run git lfs pull where it came from",
}
FILE_NAME = re.compile(rf"[^\n]+\.({'|'.join(sorted(IMAGE_SUFFIXES))})", re.IGNORECASE)
MAX_DOWNLOAD = 256 * 2**20  # bytes: an endless answer must not fill the memory
TIMEOUT = 10.0  # seconds without an answer


def is_image_source(text: str) -> bool:
    """Whether a prompt's string stands for an image: a URL and nothing else, or the name of an image file.

    A name that ends like an image's (`.jpg`, `.png`, ...) counts if the file exists, and also, so that a mistyped name
    does not silently become text, if it has no spaces. Other files are given as `pathlib.Path`.
    """
    if URL.fullmatch(text):
        return True
    return FILE_NAME.fullmatch(text) is not None and (len(text.split()) == 1 or Path(text).is_file())


def image_source(text: str) -> str | Path:
    """What a string that certainly stands for an image means: a URL stays one, anything else is a path."""
    return text if URL.fullmatch(text) else Path(text)


def load_image(source: str | Path, timeout: float = TIMEOUT) -> Image.Image:
    """The RGB image in a file, behind an http(s), gs:// or s3:// URL or inside a `data:` URL.

    As the reference's `load_image`: turned upright by its EXIF orientation and converted to RGB, which drops an alpha
    channel. (A Pillow image given by the user is not turned, and its transparency is laid on white: `to_rgb`.)

    Raises:
        FileNotFoundError, OSError: the file cannot be read, or the URL gives no answer within `timeout` seconds.
        ValueError: what was read is not an image, is damaged, or is too large to be safe.
    """
    name = short_name(source)
    content = read_bytes(source, name, timeout)
    try:
        with open_image(io.BytesIO(content)) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels, more than {limit:,}")
            ImageOps.exif_transpose(image, in_place=True)
            image.load()
            return image if image.mode == "RGB" else image.convert("RGB")  # a large image is not copied for nothing
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        message = (
            f"{name} is too large to be read safely ({error}); make it smaller or raise PIL.Image.MAX_IMAGE_PIXELS."
        )
        raise ValueError(message) from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is {_not_read(content)}.") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ValueError(f"{name} is truncated or damaged ({len(content):,} bytes: {error}); replace it.") from error


def open_image(file: Any) -> Image.Image:
    """`PIL.Image.open` for the formats that are decoded in this process.

    Raises:
        UnidentifiedImageError: the file is none of them.
    """
    for load_plugins in (Image.preinit, Image.init):  # the second takes 0.1 s
        load_plugins()
        try:
            return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
        except UnidentifiedImageError as error:
            unidentified = error
    raise unidentified


def read_bytes(source: str | Path, name: str, timeout: float) -> bytes:
    """The bytes of a file or URL; `name` is what errors call it."""
    if isinstance(source, Path) or not URL.fullmatch(source):
        try:
            return Path(source).read_bytes()
        except FileNotFoundError as error:
            raise FileNotFoundError(f"The image file {name} does not exist.") from error
        except OSError as error:
            raise OSError(f"The image file {name} cannot be read: {error.strerror}.") from error
    if source.startswith("data:"):
        header, _, data = source.partition(",")
        try:
            if not header.endswith(";base64"):
                raise ValueError("it is not marked ;base64")
            return base64.b64decode(data, validate=True)
        except (ValueError, binascii.Error) as error:
            raise ValueError(f"{name} is not a base64 data URL: {error}.") from error
    if source.startswith(("gs://", "s3://")):
        try:
            return as_path(source).read_bytes()
        except FileNotFoundError as error:
            raise FileNotFoundError(f"The image {name} does not exist.") from error
        except Exception as error:  # each kind of server has its own
            raise OSError(f"The image {name} cannot be read: {error}.") from error
    if not source.lower().startswith(("http://", "https://")):
        raise ValueError(
            f"{name} is not read: use an http(s), gs://, s3:// or data: URL, a file, or an opened Pillow image."
        )
    try:
        request = urllib.request.Request(source, headers={"User-Agent": "idefics-jax"})
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            content = answer.read(MAX_DOWNLOAD + 1)
    except urllib.error.HTTPError as error:
        error.close()
        raise OSError(f"{name} answered {error.code} {error.reason} instead of an image.") from error
    except (OSError, http.client.HTTPException, UnicodeError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise OSError(f"{name} could not be read within {timeout:g} seconds: {reason}.") from error
    if len(content) > MAX_DOWNLOAD:
        raise ValueError(f"{name} is larger than {MAX_DOWNLOAD:,} bytes; download and shrink it first.")
    return content


def _not_read(content: bytes) -> str:
    """What a file is that no decoder takes, and the mend."""
    start = content[:512].lstrip(b"\xef\xbb\xbf \t\r\n")
    for signature, kind in OTHERS.items():
        if re.match(signature, start, re.IGNORECASE | re.DOTALL):
            return kind
    return f"not an image that Pillow can read ({len(content):,} bytes)"


def short_name(source: str | Path) -> str:
    """What error messages call an image: its path or URL, without the kilobytes of a `data:` URL."""
    name = str(source)
    return name if len(name) <= 200 else f"{name[:40]}... ({len(name):,} characters)"


def to_rgb(image: Image.Image, name: str = "The image") -> Image.Image:
    """A Pillow image of any mode as RGB, its transparent parts laid on white; not turned by EXIF: as the reference.

    16-bit grey becomes RGB by Pillow's own `convert`, as in the reference.

    Raises:
        ValueError: the image's file turns out to be damaged now that its pixels are read.
    """
    try:
        if "A" in image.getbands() or image.info.get("transparency") is not None:
            image = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        image.load()
        return image if image.mode == "RGB" else image.convert("RGB")
    except (OSError, SyntaxError, EOFError) as error:
        raise ValueError(f"{name} is truncated or damaged ({error}); replace it.") from error


def array_to_rgb(array: np.ndarray, name: str = "The image") -> np.ndarray:
    """An array `[h, w]`, `[h, w, c]` or `[c, h, w]`, c in (1, 3, 4), as `[h, w, 3]` of the same dtype.

    As the reference: an array whose first axis could be the channels is taken as channels first, grey is repeated, and
    a fourth channel is alpha, by which the colours are laid on white. (`[h, w]` is ours; the reference rejects it.)

    Raises:
        ValueError: another shape, or no pixels; alpha of floats outside [0, 1].
    """
    shape = array.shape
    if array.ndim == 2:
        array = array[..., None]
    elif array.ndim == 3 and array.shape[0] in (1, 3, 4):
        array = np.moveaxis(array, 0, -1)
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4) or array.size == 0:
        raise ValueError(
            f"{name} is an array of shape {shape}; an image is [height, width, channels] or [channels, height, "
            "width] with 1, 3 or 4 channels, or [height, width]."
        )
    if array.shape[-1] == 1:
        return np.repeat(array, 3, axis=-1)
    if array.shape[-1] == 3:
        return array
    integers = np.issubdtype(array.dtype, np.integer)
    if not integers and (array.min() < 0 or array.max() > 1):
        raise ValueError(f"{name} is an RGBA array of floats outside [0, 1] ({array.min()} to {array.max()}).")
    white = 255 if integers else 1.0
    alpha = array[..., 3:] / white
    blend = alpha * array[..., :3] + (1 - alpha) * white
    return (np.round(blend) if integers else blend).astype(array.dtype)


def array_to_bytes(array: np.ndarray, name: str = "The image") -> tuple[np.ndarray, bool]:
    """Pixels as uint8, and whether they were fractions of 1 that were multiplied by 255.

    As the reference decides it: whole numbers are taken as they are, anything else must lie in [0, 1].

    Raises:
        ValueError: values outside 0..255, or fractions outside [0, 1].
    """
    if array.dtype == np.uint8:
        return array, False
    low, high = array.min(), array.max()
    whole = bool(np.isfinite(low) and np.isfinite(high)) and np.allclose(array, array.astype(int))
    if not (low >= 0 and high <= (255 if whole else 1)):
        raise ValueError(
            f"{name} is an array of values from {low} to {high}; give whole numbers from 0 to 255 or fractions of 1."
        )
    if whole:
        return array.astype(np.uint8), False
    return (array.astype(np.float64) * 255).astype(np.float32).astype(np.uint8), True
