"""Image files as they are met: odd metadata, every format, base64 of every form, more than 8 bits, bombs."""

import base64
import io
import json
import struct
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from idefics_jax.processing.image_processor import IdeficsImageProcessor
from idefics_jax.processing.images import FORMATS, HighDepthWarning, image_source, is_image_source, load_image, to_rgb
from idefics_jax.processing.prompts import Text, parse_prompts

NOISE = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)


def encoded(kind: str = "PNG", pixels: np.ndarray = NOISE, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunks(*chunks: bytes) -> bytes:
    png = encoded()
    return png[:33] + b"".join(chunks) + png[33:]


def tiff(*entries: bytes) -> bytes:
    """An EXIF block of these entries of its directory."""
    return b"MM\0*\0\0\0\x08" + struct.pack(">H", len(entries)) + b"".join(entries) + b"\0\0\0\0"


ORIENTATION = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
SIGNED_RATIONAL = struct.pack(">HHIi", 0x011A, 10, 1, 38)  # where an unsigned one belongs


# A picture whose pixels are whole is read.


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("exif", "turned"),
    [
        (tiff(ORIENTATION), True),
        (tiff(ORIENTATION, SIGNED_RATIONAL) + struct.pack(">ii", -5, 3), True),
        (tiff(ORIENTATION)[:-4], True),
        (tiff(ORIENTATION)[:-9], False),
        (b"MM\0*\0\0", False),
        (b"MM\0*\xff\xff\xff\xff", False),
        (b"XX\0*\0\0\0\x08\0\0", False),
        (b"M", False),
        (tiff(struct.pack(">HHI4s", 0x0112, 2, 4, b"six\0")), False),
        (tiff(struct.pack(">HHII", 0x0112, 4, 1, 99)), False),
    ],
)
@pytest.mark.filterwarnings("ignore:.*EXIF")
def test_broken_exif_leaves_the_pixels(tmp_path, kind, exif, turned):
    options = {"lossless": True} if kind == "WEBP" else {}
    plain = encoded(kind, **options)
    if kind == "PNG":
        content = with_chunks(chunk(b"eXIf", exif))
    elif kind == "JPEG":
        content = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 8) + b"Exif\0\0" + exif + plain[2:]
    else:
        content = encoded(kind, exif=b"Exif\0\0" + exif, **options)
    (tmp_path / "x").write_bytes(content)
    expected = np.asarray(Image.open(io.BytesIO(plain)).convert("RGB"))
    pixels = np.asarray(load_image(tmp_path / "x"))
    np.testing.assert_array_equal(pixels, np.rot90(expected, -1) if turned else expected)


@pytest.mark.parametrize(
    "chunks",
    [
        [chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**24)))],
        [chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**24)))],
        [chunk(b"iCCP", b"a\0\0garbage")],
        [chunk(b"tEXt", b"a\0b")[:-1] + b"?"],
        [chunk(b"tEXt", b"key\0" + bytes(900_000))] * 80,
        [chunk(b"teSt", b"")] * 100_000,
    ],
)
def test_texts_and_profiles_of_a_png_leave_the_pixels(tmp_path, chunks):
    (tmp_path / "x").write_bytes(with_chunks(*chunks))
    start = time.monotonic()
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "x")), NOISE)
    assert time.monotonic() - start < 5


def test_whatever_a_decoder_raises_is_a_sentence(tmp_path):
    """Among others `RuntimeError`, `ZeroDivisionError` and `struct.error`."""
    random = np.random.default_rng(1)
    for kind in ("AVIF", "JPEG", "PNG", "WEBP", "TIFF", "GIF", "JPEG2000", "ICO", "TGA", "DDS"):
        whole = np.frombuffer(encoded(kind), np.uint8)
        for _ in range(25):
            damaged = whole.copy()
            damaged[random.integers(0, min(len(whole), 400), 6)] = random.integers(0, 256, 6)
            (tmp_path / "x").write_bytes(damaged.tobytes())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                problem = ""
                try:
                    load_image(tmp_path / "x")
                except ValueError as error:
                    problem = str(error)
                assert problem == "" or problem.startswith(f"{tmp_path / 'x'} is ")
                assert "\n" not in problem


@pytest.mark.parametrize("magic", [b"P1", b"P2", b"P3"])
def test_a_plain_image_is_read_as_the_binary_one(tmp_path, magic):
    grey = NOISE[..., :1] // 128 if magic == b"P1" else NOISE[..., :1]
    numbers = NOISE if magic == b"P3" else grey
    largest = b"" if magic == b"P1" else b"255\n"
    body = b" ".join(b"%d" % number for number in numbers.flat)
    (tmp_path / "x").write_bytes(magic + b"\n# a comment\n12 8\n" + largest + b"# another\n" + body + b"\n")
    expected = np.broadcast_to(255 * (1 - numbers) if magic == b"P1" else numbers, NOISE.shape)
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "x")), expected)


@pytest.mark.parametrize("header", [b"P6 1200 1200 255\n", b"P6\n# a comment\n1200\n#\n1200 255\n"])
def test_a_large_binary_image_is_read(tmp_path, header):
    (tmp_path / "x").write_bytes(header + bytes(3 * 1200 * 1200))
    assert load_image(tmp_path / "x").size == (1200, 1200)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP"])
def test_only_the_first_frame_is_read(tmp_path, kind):
    frames = [Image.new("RGB", (4, 4), (number % 256, number // 256, 9)) for number in range(300)]
    options = {"lossless": True} if kind == "WEBP" else {}
    frames[0].save(tmp_path / "x", kind, save_all=True, append_images=frames[1:], **options)
    assert load_image(tmp_path / "x").getpixel((0, 0)) == (0, 0, 9)


def test_an_opened_postscript_image_starts_no_program(tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was started"))
    Image.fromarray(NOISE).save(tmp_path / "x.eps")
    with Image.open(tmp_path / "x.eps") as opened, pytest.raises(ValueError, match="is EPS, which is not read"):
        to_rgb(opened)


# Strings that are images.


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind not in ("HEIF", "JXL", "CUR", "PSD", "SUN", "MPO")])
def test_names_of_every_format_are_images(tmp_path, kind):
    Image.init()
    for suffix in FORMATS[kind]:
        path = tmp_path / f"a photo.{suffix}"
        if kind in Image.SAVE:
            Image.fromarray(NOISE).convert("1" if kind == "XBM" else "RGB").save(path, kind)
            assert load_image(path).mode == "RGB"
            assert is_image_source(str(path))
        assert is_image_source(f"photo.{suffix.upper()}\n")
        assert not is_image_source(f"see my photo.{suffix}")


PNG = encoded()
ONE = base64.b64encode(PNG).decode()
LINES = base64.encodebytes(PNG).decode()
URL_SAFE = base64.urlsafe_b64encode(PNG).decode()


@pytest.mark.parametrize(
    "text",
    [
        f"data:image/png;base64,{ONE}",
        f"data:image/png;base64,{LINES}",
        f"  data:image/png;base64,\n{LINES}\n",
        f"data:image/png;base64, {ONE}",
        f"DATA:image/png;BASE64,{ONE}",
        f"data:application/octet-stream;base64,{ONE}",
        f"data:;base64,{ONE}",
        f"data:image/png;charset=utf-8;base64,{ONE}",
        f"data:image/png;name=a b.png;base64,{ONE}",
        f"data:image/png;base64,{URL_SAFE}",
        f"data:image/png;base64,{URL_SAFE.rstrip('=')}",
        f"data:image/png;base64,{ONE.replace('+', '%2B').replace('=', '%3D')}",
        ONE,
        ONE.rstrip("="),
        LINES,
        LINES.replace("\n", "\r\n"),
        URL_SAFE,
    ],
)
def test_base64_of_every_form_is_an_image(text):
    assert is_image_source(text)
    np.testing.assert_array_equal(np.asarray(load_image(image_source(text))), NOISE)
    ((image, _),) = parse_prompts([text, "What?"], None)
    assert not isinstance(image, Text)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000"])
def test_bare_base64_of_every_format_is_an_image(kind):
    text = base64.b64encode(encoded(kind)).decode()
    assert is_image_source(text)
    assert load_image(image_source(text)).size == (12, 8)


def test_long_base64_of_anything_is_no_text():
    text = base64.b64encode(bytes(range(256)) * 20).decode()
    assert is_image_source(text)
    with pytest.raises(ValueError, match=r"characters\) is not an image that Pillow can read \(5,120 bytes\)"):
        load_image(image_source(text))


@pytest.mark.parametrize(
    "text",
    [
        *("What is this?", "Answer:", "iVBORw0KGgo", "/9j/", "R0lGODlh is how a GIF begins", "x" * 5000, "ab " * 2000),
        *("data:", "data:text/plain,hello", "data: the base64 of", "ACGT" * 500, "http://a.b and more", "1,2,3"),
    ],
)
def test_texts_stay_texts(text):
    assert not is_image_source(text)


def test_addresses_with_their_files_newline_are_images():
    for text in ("http://a.example/b.jpg\n", "\thttps://a.example/b\r\n"):
        assert is_image_source(text)
        assert image_source(text) == text.strip()
    assert image_source("photo.jpg\n") == Path("photo.jpg")


# More than 8 bits.

GREY = np.arange(96, dtype=np.uint8).reshape(8, 12)


@pytest.mark.parametrize(
    ("pixels", "suffix", "scaled"),
    [
        (GREY.astype(np.uint16) * 257, "png", GREY),
        (GREY.astype(np.uint16) * 257, "tiff", GREY),
        (GREY.astype(np.int32) * 257, "tiff", GREY),
        ((GREY / 255).astype(np.float32), "tiff", GREY),
        ((GREY * 1000.0 - 500).astype(np.float32), "tiff", np.round(GREY * (255 / 95)).astype(np.uint8)),
        (GREY.astype(np.int32) * 10**6, "tiff", np.round(GREY * (255 / 95)).astype(np.uint8)),
    ],
)
def test_high_depth_is_said_and_scaled(tmp_path, pixels, suffix, scaled):
    Image.fromarray(pixels).save(tmp_path / f"x.{suffix}")
    with pytest.warns(HighDepthWarning, match=r"^Images in .*: 16-bit and float pixels become white or black, as in"):
        clipped = load_image(tmp_path / f"x.{suffix}")
    with Image.open(tmp_path / f"x.{suffix}") as image:
        np.testing.assert_array_equal(np.asarray(clipped), np.asarray(image.convert("RGB")), "the reference's")
        with pytest.warns(HighDepthWarning, match=r"x\.(png|tiff): 16-bit and float pixels"):
            IdeficsImageProcessor().preprocess(image)
    found = load_image(tmp_path / f"x.{suffix}", high_depth="scale")
    np.testing.assert_array_equal(np.asarray(found), scaled[..., None].repeat(3, axis=2))


def test_high_depth_is_said_once_for_a_folder(tmp_path):
    for name in ("a.png", "b.png"):
        Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / name)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        IdeficsImageProcessor().preprocess([tmp_path / "a.png", tmp_path / "b.png"])
    assert len(caught) == 1
    Image.fromarray(GREY.astype(np.uint16)).save(tmp_path / "within-8-bits.png")
    load_image(tmp_path / "within-8-bits.png")  # nothing is lost, and nothing said


def test_high_depth_is_saved_with_the_processor(tmp_path):
    IdeficsImageProcessor().save_pretrained(tmp_path)
    assert "high_depth" not in json.loads((tmp_path / "preprocessor_config.json").read_text())
    processor = IdeficsImageProcessor(high_depth="scale")
    processor.save_pretrained(tmp_path)
    assert IdeficsImageProcessor.from_pretrained(tmp_path) == processor
