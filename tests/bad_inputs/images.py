"""Images that no command reads: special files, other formats, damaged ones, bombs and addresses."""

import base64
import io
import os
import socket
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from tests.bad_inputs.case import Case, Folder

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n{} loop\n"
MODEL = ("--model", "{checkpoint}")


def asked(image: str) -> tuple[str, ...]:
    """The command that asks about an image."""
    return ("generate", *MODEL, "--image", image, "--prompt", "<image>What is this?")


def case(name: str, says: str, content: bytes | Callable[[], bytes] | None = None, file: str = "x.png") -> Case:
    """A file of this content as an image."""

    def write(folder: Folder) -> None:
        if content is not None:
            folder.write(file, content if isinstance(content, bytes) else content())

    return Case(name, asked(f"{{d}}/{file}"), says, write)


def special(name: str, make: Callable[[str], Any], says: str) -> Case:
    """A file that is no regular one."""
    return Case(name, asked("{d}/x.png"), says, lambda folder: make(str(folder.path / "x.png")))


def listen(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)


def endless(path: str) -> None:
    os.truncate(os.open(path, os.O_CREAT | os.O_RDWR), 2**40)  # a file of holes


def picture(kind: str, size: int = 64) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, kind)
    return file.getvalue()


def huge_png() -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 10**6))
        + chunk(b"IEND", b"")
    )


def answers(*options: str) -> tuple[str, ...]:
    """The command that evaluates one question, which `records` writes."""
    shots = ("--zero-shot", "none", "--num-beams", "1")
    return ("eval", "jsonl", *MODEL, "--data", "{d}/data.jsonl", "--out", "{d}/out", *shots, *options)


def records(*images: str) -> Callable[[Folder], Any]:
    return lambda folder: folder.lines(
        "data.jsonl", *({"image": image, "question": "q", "answer": "a"} for image in images)
    )


def preprocessor(**values: Any) -> Callable[[Folder], Any]:
    return lambda folder: folder.copy() and folder.write("model/preprocessor_config.json", values)


LARGE = r"is too large to be read safely \(13000 x 13000 pixels"
TURNED = ("generate", "--model", "{d}/model", "--prompt", "Hello.")
CASES = [
    special("named pipe", os.mkfifo, r"x\.png is a named pipe, not a file\.$"),
    special("directory", os.mkdir, r"x\.png is a directory, not a file\.$"),
    special("endless device", lambda path: os.symlink("/dev/zero", path), r"x\.png is a device, not a file\.$"),
    special("random device", lambda path: os.symlink("/dev/urandom", path), r"x\.png is a device, not a file\.$"),
    special("socket", listen, r"x\.png is a socket, not a file\.$"),
    special("link to itself", lambda path: os.symlink(path, path), r"x\.png cannot be read: Too many levels"),
    special("a terabyte", endless, r"x\.png has more than 268,435,456 bytes, the most that is read of such a file\.$"),
    case("no such file", r"The image file .*x\.png does not exist\.$"),
    Case("name of 5,000 characters", asked("{d}/" + "x" * 5000), r"The image file .*characters\) does not exist\.$"),
    case("empty", r"x\.png is not an image that Pillow can read \(0 bytes\)\.$", b""),
    case("text", r"x\.png is not an image that Pillow can read \(10 bytes\)\.$", b"just words"),
    case("PostScript", r"is PostScript, which is not read; convert it to PNG or JPEG\.$", POSTSCRIPT, "x.eps"),
    case("PostScript called PNG", r"x\.png is PostScript, which is not read", POSTSCRIPT),
    case(
        "PostScript with a binary header",
        r"x\.jpg is PostScript",
        b"\xc5\xd0\xd3\xc6" + bytes(28) + POSTSCRIPT,
        "x.jpg",
    ),
    case("PDF", r"x\.png is a PDF, which is not read; convert it to PNG or JPEG\.$", b"%PDF-1.7\n1 0 obj\n"),
    case("SVG", r"is an SVG drawing, which is not read", b"<?xml version='1.0'?>\n<svg xmlns='x'/>", "x.svg"),
    case("WMF", r"x\.wmf is not an image that Pillow can read", b"\xd7\xcd\xc6\x9a" + bytes(80), "x.wmf"),
    case("HDF5", r"is not an image that Pillow can read", b"\x89HDF\r\n\x1a\n" + bytes(80)),
    case("MPEG", r"is not an image that Pillow can read", b"\x00\x00\x01\xb3" + bytes(80)),
    case(
        "XPM",
        r"is XPM, which is not read; convert it to PNG or JPEG\.$",
        b'/* XPM */\nstatic char *x[] = {"9 9 1 1"',
        "x.xpm",
    ),
    case("HEIC", r"x\.heic is HEIC, which is not read", b"\0\0\0\x18ftypheic" + bytes(80), "x.heic"),
    case("web page", r"x\.png is a web page, not an image\.$", b"<!DOCTYPE html><html>"),
    case(
        "git-lfs pointer",
        r"is a git-lfs pointer, not the image; run git lfs pull",
        b"version https://git-lfs.github.com",
    ),
    *(
        case(
            f"half a {kind}",
            r"x\.png is (truncated or damaged|not an image)",
            lambda kind=kind: picture(kind)[: len(picture(kind)) // 2],
        )
        for kind in ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF")
    ),
    case("huge PNG", r"x\.png is too large to be read safely", huge_png),
    case("huge QOI", LARGE, b"qoif" + struct.pack(">IIBB", 13_000, 13_000, 3, 0) + b"\xfd" * 3_000_000, "x.qoi"),
    case("huge plain PPM", LARGE, b"P3 13000 13000 255\n" + b"1 " * 1_000_000, "x.ppm"),
    case(
        "long plain PPM, cut off",
        r"x\.ppm is a PPM in ASCII of 5,000,017 bytes and 0 comments, more than .*; convert it to PNG\.$",
        b"P3 2500 2500 255\n" + b"1 " * 2_500_000,
        "x.ppm",
    ),
    case(
        "plain PGM of comments",
        r"x\.png is a PPM in ASCII of 1,000,015 bytes and 500,000 comments, more than",
        b"P2 1000 10 255\n" + b"#\n" * 500_000,
    ),
    case(
        "binary PPM of a long header",
        r"x\.ppm is a PPM of a long header of 10,000,013 bytes",
        b"P6 #" + b"a" * 10**7 + b"\n2 2 255\n",
        "x.ppm",
    ),
    Case(
        "base64 of no image",
        asked("data:image/png;base64,QUJD"),
        r"is not an image that Pillow can read \(3 bytes\)\.$",
    ),
    Case(
        "data URL without base64", asked("data:image/png,abc"), r"is not a base64 data URL: it is not marked ;base64\.$"
    ),
    Case("broken base64", asked("data:application/octet-stream;base64,Q"), r"is not a base64 data URL: "),
    Case(
        "bare base64 of a cut image",
        asked(base64.b64encode(picture("PNG")[:900]).decode()),
        r"characters\) is truncated or damaged",
    ),
    Case(
        "loopback",
        asked("http://127.0.0.1:9/x.png"),
        r"127\.0\.0\.1, which is no public address; give the image as a file\.$",
    ),
    Case("loopback as a number", asked("http://2130706433:9/x.png"), "no public address|is not found"),
    Case("loopback in IPv6", asked("http://[::ffff:127.0.0.1]:9/x.png"), "no public address|is not found"),
    Case("metadata service", asked("http://169.254.169.254/latest"), r"169\.254\.169\.254, which is no public address"),
    Case("private network", asked("https://10.0.0.1/x.png"), r"10\.0\.0\.1, which is no public address"),
    Case("name and password", asked("http://me:secret@127.0.0.1/x.png"), "holds a user name or password"),
    Case("ftp", asked("ftp://127.0.0.1/x.png"), "is not read: use an http"),
    Case("file URL", asked("file:///etc/passwd"), "is not read: use an http"),
    Case(
        "remote image in an evaluation",
        answers(),
        "is not fetched without --remote-images",
        records("http://127.0.0.1:9/x.png"),
    ),
    Case(
        "image size of 30,000",
        TURNED,
        "image_size=30000 must be a whole number from 1 to 4,096",
        preprocessor(image_size=30_000),
    ),
    Case("image size of 0", TURNED, "image_size=0 must be a whole number from 1 to 4,096", preprocessor(image_size=0)),
    Case("high depth of no name", TURNED, "high_depth='log' is neither clip nor scale", preprocessor(high_depth="log")),
    Case("option of no name", (*TURNED, "--high-depth", "log"), "invalid choice: 'log'"),
]
