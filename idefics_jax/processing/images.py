"""Reading images: from files, URLs and arrays to RGB, as the reference does, with one clear error for each mishap."""

import base64
import io
import os
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from idefics_jax.utils.paths import as_path, read_regular
from idefics_jax.utils.remote import fetch

ImageInput = Image.Image | np.ndarray | str | Path
#: Treatment of pixels of more than 8 bits: cut off at 0 and 255 as in the reference, or scaled to that range.
HighDepth = Literal["clip", "scale"]
#: Reads an http(s) address, which errors call `name`: `remote.fetch`, or it with other limits.
Fetch = Callable[..., bytes]

MAX_BYTES = 256 * 2**20  # of a file
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+", re.ASCII)
DATA_URL = re.compile(r"data:(image/[\w.+-]+[^,]{0,200}|[^,]{0,200};\s*base64\s*),", re.ASCII | re.IGNORECASE)
BASE64 = re.compile(r"[A-Za-z0-9+/_-]+(\r?\n[A-Za-z0-9+/_-]+)*={0,2}")
# Images in base64: JPEG, PNG, GIF, WebP, BMP, TIFF, AVIF and HEIC, JPEG 2000.
BASE64_HEAD = re.compile(
    r"[/_]9j[/_]|iVBORw0KGgo|R0lGODdh|R0lGODlh|UklGR|Qk.{6}AAAA|SUkqA|TU0AK|AAAA..Z0eXB|AAAADGpQICA"
)
MAX_REMARKS = 1000  # chunks of a PNG beside its pixels: Pillow takes 13 microseconds for each
# Bytes of a PPM in ASCII, or of a long header: Pillow takes up to 1.5 microseconds for each of their numbers and bytes.
MAX_SLOW_PPM = 4 * 2**20
PPM_HEADER = re.compile(rb"P[14]S\d+S\d+\s|P[^14]\w*S\d+S\d+S[-+.\w]+\s".replace(b"S", rb"(?:\s|#[^\r\n]*[\r\n])+"))
MAX_PATH = 4096  # characters
LONG = 1000  # characters without a space that are no text
# Pillow's formats that are read, and the endings of their files. All are decoded in this process: PostScript is left
# out because Pillow gives it to Ghostscript, IPTC because it can hold PostScript, WMF, HDF5, GRIB, BUFR and MPEG
# because Pillow needs another program or library for them, and XPM because it takes a minute for a large image.
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
    "TGA": ("tga", "icb", "vda", "vst"),
    "HEIF": ("heic", "heics", "heif", "heifs", "hif"),  # with pillow-heif
    "JXL": ("jxl",),  # with pillow-jxl-plugin
}
#: Endings of image files, without the dot and in lower case: of all that `load_image` reads, and of some that it
#: refuses by name, so that none of them is taken for a text.
IMAGE_SUFFIXES = {"eps", "svg", "wmf", "xpm"}.union(*FORMATS.values())
TURNS = {  # by the EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
CONVERT = "which is not read; convert it to PNG or JPEG"
OTHERS = {  # how files begin that are often given as images, and what they are
    rb"%!PS|\xc5\xd0\xd3\xc6": f"PostScript, {CONVERT}",
    rb"%PDF": f"a PDF, {CONVERT}",
    rb"(<\?xml.*?)?<svg": f"an SVG drawing, {CONVERT}",
    rb"....ftyp(hei|hev|mif|msf)": f"HEIC, {CONVERT}",
    rb"(....JXL |\xff\x0a)": f"JPEG XL, {CONVERT}",
    rb"/\* XPM": f"XPM, {CONVERT}",
    rb"<!doctype html|<html": "a web page, not an image",
    rb"version https://git-lfs": "a git-lfs pointer, not the image; run git lfs pull where it came from",
}
FILE_NAME = re.compile(rf"[^\n]+\.({'|'.join(sorted(IMAGE_SUFFIXES))})", re.IGNORECASE)
MAX_DOWNLOAD = 256 * 2**20  # bytes: an endless answer must not fill the memory
TIMEOUT = 10.0  # seconds without an answer


def is_image_source(text: str) -> bool:
    """Return True if a prompt's string stands for an image: a URL, base64 or the name of an image file, nothing else.

    A name that ends like an image's (`IMAGE_SUFFIXES`) counts if the file exists, and also, so that a mistyped name
    does not silently become text, if it has no spaces. Other files are given as `pathlib.Path`. Base64 without a
    `data:` header counts if it begins as an image does, or has 1,000 characters, so that no image is read as text.
    """
    stripped = text.strip()
    if _is_url(stripped) or _is_base64(stripped):
        return True
    return FILE_NAME.fullmatch(stripped) is not None and (len(stripped.split()) == 1 or os.path.isfile(stripped))


def image_source(text: str) -> str | Path:
    """The URL or base64, or else the path, that a string means which certainly stands for an image."""
    if os.path.isfile(text):
        return Path(text)
    stripped = text.strip()
    return stripped if _is_url(stripped) or _is_base64(stripped) else Path(stripped or text)


def _decode_whole(content: bytes) -> Image.Image:
    """A file's first image, upright; of a PNG also where a text or profile in it is damaged or takes too long."""
    parts, remarks = _png_pixels(content)
    if remarks > MAX_REMARKS:
        return _decode(b"".join(parts))
    try:
        return _decode(content)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise
    except Exception:
        if not remarks:
            raise
        return _decode(b"".join(parts))


def _decode(content: bytes) -> Image.Image:
    with open_image(io.BytesIO(content)) as image:
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and image.width * image.height > limit:
            raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels, more than {limit:,}")
        image.load()
        upright = TURNS.get(_orientation(image))
        return image if upright is None else image.transpose(upright)


def _check_ppm(content: bytes, name: str) -> None:
    """Refuse a PPM, PGM, PBM or PFM, whole or not, that Pillow would read for more than some seconds.

    Raises:
        ValueError: it has too many bytes for its form, or too many comments, each of which moves all that follows.
    """
    if re.match(rb"P[0-6fy]", content) is None:
        return
    plain, long = re.match(rb"P[123][\s#]", content) is not None, PPM_HEADER.match(content[:4096]) is None
    comments = content.count(b"#") if plain else 0
    if (plain or long) and (len(content) > MAX_SLOW_PPM or comments > MAX_REMARKS):
        raise ValueError(
            f"{name} is a PPM {'in ASCII' if plain else 'of a long header'} of {len(content):,} bytes and {comments:,} "
            f"comments, more than the {MAX_SLOW_PPM:,} and {MAX_REMARKS:,} that are read; convert it to PNG."
        )


def _png_pixels(content: bytes) -> tuple[list[memoryview], int]:
    """The parts of a PNG that its pixels and its orientation need, and the number of its other chunks."""
    parts, remarks, at, view = [memoryview(content[:8])], 0, 8, memoryview(content)
    while content.startswith(b"\x89PNG\r\n") and at + 12 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, at)
        chunk, at = view[at : at + 12 + size], at + 12 + size
        good = kind == b"eXIf" and zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        if good or kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            parts.append(chunk)
        else:
            remarks += 1
    return parts, remarks


def is_remote(source: str | Path) -> bool:
    """Return True for an http(s) address, which `fetch` reads."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def _is_url(text: str) -> bool:
    return URL.fullmatch(text) is not None or DATA_URL.match(text) is not None


def _is_base64(text: str) -> bool:
    if BASE64_HEAD.match(text) is None and len(text) < LONG:
        return False
    if len(text) < 40 or BASE64.fullmatch(text) is None:
        return False
    mixed = all(re.search(letters, text) for letters in ("[a-z]", "[A-Z]", "[0-9]"))
    return BASE64_HEAD.match(text) is not None or mixed


def load_image(source: str | Path, fetch: Fetch | None = fetch, high_depth: HighDepth = "clip") -> Image.Image:
    """Load the RGB image in a file, behind an http(s), gs:// or s3:// URL, or in base64 with or without `data:`.

    As the reference's `load_image`: turned upright by its EXIF orientation and converted to RGB, which drops an alpha
    channel. (A Pillow image given by the user is not turned, and its transparency is laid on white: `to_rgb`.) Of a
    file with several images the first is loaded.

    Args:
        fetch: reads http(s) addresses; None refuses them.
        high_depth: what becomes of 16-bit and float pixels; see `to_eight_bits`.

    Raises:
        FileNotFoundError, OSError: the file cannot be read, or the URL gives no answer in time.
        ValueError: what was read is not an image, is damaged, or is too large to be safe.
    """
    name = short_name(source)
    content = read_bytes(source, name, fetch)
    _check_ppm(content, name)
    try:
        image = to_eight_bits(_decode_whole(content), high_depth, _origin(source))
        return image if image.mode == "RGB" else image.convert("RGB")  # a large image is not copied for nothing
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        message = (
            f"{name} is too large to be read safely ({error}); make it smaller or raise PIL.Image.MAX_IMAGE_PIXELS."
        )
        raise ValueError(message) from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is {_not_read(content)}.") from error
    except HighDepthWarning:  # which the caller has made an error
        raise
    except Exception as error:  # each decoder has its own
        raise ValueError(f"{name} is {_damage(error, f'{len(content):,} bytes: ')}") from error


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


def read_bytes(source: str | Path, name: str, fetch: Fetch | None = fetch) -> bytes:
    """Read the bytes of an image's file, URL or base64; errors call it `name`."""
    text = "" if isinstance(source, Path) else source
    if text.startswith(("gs://", "s3://")):
        return read_regular(as_path(text), MAX_BYTES)
    if is_remote(text):
        if fetch is None:
            raise ValueError(
                f"{name} is not fetched: remote images are off; give the file, or allow them with --remote-images "
                "(in training --data.remote-images)."
            )
        return fetch(text, name=name)
    if DATA_URL.match(text):
        header, _, data = text.partition(",")
        if not re.search(r";\s*base64\s*$", header, re.IGNORECASE):
            raise ValueError(f"{name} is not a base64 data URL: it is not marked ;base64.")
        return _decode_base64(data, f"{name} is not a base64 data URL")
    if URL.fullmatch(text):
        raise ValueError(
            f"{name} is not read: use an http(s), gs://, s3:// or data: URL, a file, or an opened Pillow image."
        )
    if text and not os.path.isfile(text) and _is_base64(text):
        return _decode_base64(text, f"{name} is not base64")
    try:
        if len(str(source)) > MAX_PATH:
            raise FileNotFoundError
        return read_regular(Path(source), MAX_BYTES)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"The image file {name} does not exist.") from error


def _decode_base64(data: str, problem: str) -> bytes:
    """Decode base64 in lines or in one, of either alphabet, with or without its padding."""
    data = re.sub(r"\s", "", unquote(data)).rstrip("=").translate(str.maketrans("-_", "+/"))
    try:
        return base64.b64decode(data + "=" * (-len(data) % 4), validate=True)
    except ValueError as error:
        raise ValueError(f"{problem}: {error}.") from error


def _not_read(content: bytes) -> str:
    """Describe a file that no decoder takes, and the mend."""
    start = content[:512].lstrip(b"\xef\xbb\xbf \t\r\n")
    for signature, kind in OTHERS.items():
        if re.match(signature, start, re.IGNORECASE | re.DOTALL):
            return kind
    return f"not an image that Pillow can read ({len(content):,} bytes)"


def short_name(source: str | Path) -> str:
    """Return the name of an image in messages: its path or URL, without the kilobytes of a `data:` URL."""
    name = str(source)
    return name if len(name) <= 200 else f"{name[:40]}... ({len(name):,} characters)"


def _origin(source: str | Path) -> str:
    """Return the origin of an image, for warnings that are given once for all images from there."""
    if isinstance(source, Path) or os.path.isfile(source):
        return f"Images in {Path(source).parent}"
    return f"Images at {source.rpartition('/')[0]}" if URL.fullmatch(source) else "Images in the data"


def _orientation(image: Image.Image) -> Any:
    """The EXIF orientation of a loaded image; None where it has none that can be read, whose pixels are good still."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow has many
        return None


def _damage(error: Exception, size: str = "") -> str:
    """Describe the damage of an image whose decoding raised an error, to go after "The image is"."""
    if isinstance(error, MemoryError):
        return "too large for the memory there is; make it smaller."
    reason = next(iter(str(error).splitlines()), "")[:200] or type(error).__name__
    return f"truncated or damaged ({size}{reason}); replace it."


class HighDepthWarning(UserWarning):
    """Pixels of more than 8 bits are cut off."""


def to_eight_bits(image: Image.Image, high_depth: HighDepth, origin: str) -> Image.Image:
    """A loaded image's 16-bit, 32-bit or float grey as it will become 8-bit.

    "clip" leaves them to Pillow's `convert`, as the reference does: all above 255 becomes white, and fractions of 1
    black. A `HighDepthWarning` says so, once for each `origin` by Python's rules for warnings. "scale" divides 16-bit
    pixels by 257 and multiplies fractions of 1 by 255; of other floats and whole numbers it lays the lowest on 0 and
    the highest on 255.
    """
    if not (image.mode.startswith("I") or image.mode == "F"):
        return image
    pixels = np.nan_to_num(np.asarray(image).astype(np.float64))
    low, high = float(pixels.min()), float(pixels.max())
    if high_depth == "scale":
        whole = image.mode != "F"
        if low >= 0 and high <= (65535 if whole else 1):
            low, high = 0.0, 65535.0 if whole else 1.0
        return Image.fromarray(np.round((pixels - low) * (255 / max(high - low, 1e-300))).astype(np.uint8))
    if low < 0 or high > 255 or 0 < high <= 1:
        message = (
            f"{origin}: 16-bit and float pixels become white or black, as in the reference; "
            'high_depth="scale" (--high-depth scale) scales them to 8 bits.'
        )
        warnings.warn(message, HighDepthWarning, stacklevel=2)
    return image


def to_rgb(image: Image.Image, name: str = "The image", high_depth: HighDepth = "clip") -> Image.Image:
    """A Pillow image of any mode as RGB, its transparent parts laid on white; not turned by EXIF: as the reference.

    Raises:
        ValueError: the image's file turns out to be damaged now that its pixels are read, or would start a program.
    """
    if isinstance(image, ImageFile.ImageFile) and image.tile and image.format in ("EPS", "IPTC"):
        raise ValueError(f"{name} is {image.format}, {CONVERT}.")
    try:
        if "A" in image.getbands() or image.info.get("transparency") is not None:
            image = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        image.load()
        image = to_eight_bits(image, high_depth, name)
        return image if image.mode == "RGB" else image.convert("RGB")
    except HighDepthWarning:
        raise
    except Exception as error:  # each decoder has its own
        raise ValueError(f"{name} is {_damage(error)}") from error


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
