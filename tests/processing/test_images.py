"""Where images come from: which strings name one, http, and one clear sentence for each thing that can be wrong."""

import http.server
import io
import threading
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from idefics_jax.processing.image_processor import IdeficsImageProcessor
from idefics_jax.processing.images import FORMATS, is_image_source, load_image
from idefics_jax.utils.remote import fetch

PIXELS_SIZE = 8
anywhere = partial(fetch, allowed=lambda address: True)
PROCESSOR = IdeficsImageProcessor(image_size=PIXELS_SIZE, fetch=anywhere)


@pytest.fixture
def photo(tmp_path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.jpg")
    return tmp_path / "photo.jpg"


def message(image, error: type[Exception] = ValueError) -> str:
    """The one line of the error that reading `image` gives."""
    with pytest.raises(error) as caught:
        PROCESSOR.preprocess(image)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_file(tmp_path):
    assert message(tmp_path / "no.png", FileNotFoundError).endswith("no.png does not exist.")
    assert message("no-such.png", FileNotFoundError) == "The image file no-such.png does not exist."
    assert message(tmp_path) == f"{tmp_path} is a directory, not a file."
    assert message("x" * 5000 + ".png", OSError).startswith(f"The image file {'x' * 40}... (5,004 characters) does not")


def test_not_an_image(tmp_path):
    (tmp_path / "notes.jpg").write_text("just words")
    assert message(tmp_path / "notes.jpg").endswith("notes.jpg is not an image that Pillow can read (10 bytes).")
    (tmp_path / "empty.png").touch()
    assert message(tmp_path / "empty.png").endswith("empty.png is not an image that Pillow can read (0 bytes).")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"])
def test_truncated_files(photo, tmp_path, format):
    whole = io.BytesIO()
    Image.open(photo).save(whole, format)
    cut = tmp_path / "cut"
    for kept in (0.3, 0.6, 0.9):
        cut.write_bytes(whole.getvalue()[: int(kept * len(whole.getvalue()))])
        assert "cut is " in message(cut)
        try:
            opened = Image.open(cut)
        except OSError:
            continue
        with opened:
            assert "cut is truncated or damaged (" in message(opened)


def test_truncated_jpeg_says_how_much_there_is(photo):
    photo.write_bytes(photo.read_bytes()[:3000])
    assert message(photo).startswith(f"{photo} is truncated or damaged (3,000 bytes: ")
    assert message(photo).endswith("; replace it.")


def test_decompression_bomb(photo, monkeypatch):
    for limit in (4000, 1000):  # Pillow warns of the first, refuses the second
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        for filters in ("ignore", "error"):
            with warnings.catch_warnings():
                warnings.simplefilter(filters)
                assert message(photo).startswith(f"{photo} is too large to be read safely (")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert PROCESSOR.preprocess(photo).shape == (1, PIXELS_SIZE, PIXELS_SIZE, 3)


@pytest.mark.parametrize("shape", [(3,), (5, 7, 2), (2, 5, 7), (1, 5, 7, 3), (0, 4, 3), (4, 0)])
def test_arrays_of_a_wrong_shape(shape):
    text = message(np.zeros(shape, np.uint8))
    assert text.startswith(f"Image 0 is an array of shape {shape}; an image is [height, width, channels] or ")


@pytest.mark.parametrize("value", [-1.0, 255.5, 1.5, 300, np.nan, np.inf])
def test_arrays_of_wrong_values(value):
    array = np.full((2, 2, 3), 0.5 if value == 1.5 else 7.0)
    array[0, 0, 0] = value
    assert message(array).startswith("Image 0 is an array of values from ")
    rgba = np.full((2, 2, 4), 2.5)
    assert message(rgba) == "Image 0 is an RGBA array of floats outside [0, 1] (2.5 to 2.5)."


def test_urls_that_are_not_read():
    assert message("ftp://host/a.png").startswith("ftp://host/a.png is not read: use an http(s), gs://, s3:// or data:")
    assert message("data:image/png;base64,@@@@").startswith("data:image/png;base64,@@@@ is not a base64 data URL")
    assert message("data:image/png,rawbytes").endswith("is not a base64 data URL: it is not marked ;base64.")
    long = "data:image/png;base64," + "QUJD" * 999
    assert message(long) == (
        "data:image/png;base64,QUJDQUJDQUJDQUJDQU... (4,018 characters) is not an image that Pillow can read "
        "(2,997 bytes)."
    )


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/slow":
            self.server.stop.wait(5)
        self.send_response(404 if self.path == "/missing" else 200)
        self.end_headers()
        if self.path == "/photo":
            self.wfile.write(self.server.photo)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(photo):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.photo, server.stop = photo.read_bytes(), threading.Event()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.stop.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_http_urls(server, photo):
    np.testing.assert_array_equal(PROCESSOR.preprocess(f"{server}/photo"), PROCESSOR.preprocess(photo))
    assert message(f"{server}/missing", OSError) == f"{server}/missing answered 404 Not Found instead of an image."
    assert message(f"{server}/empty") == f"{server}/empty is not an image that Pillow can read (0 bytes)."
    with pytest.raises(OSError, match=r"/slow was not read within 0\.2 seconds\.$"):
        load_image(f"{server}/slow", partial(anywhere, seconds=0.2))
    with pytest.raises(OSError, match=r"127\.0\.0\.1, which is no public address; give the image as a file\.$"):
        load_image(f"{server}/photo")
    with pytest.raises(ValueError, match=r"/photo is not fetched: remote images are off; give the file"):
        load_image(f"{server}/photo", None)


def test_image_suffixes_are_pillows():
    Image.init()
    for suffix, name in Image.registered_extensions().items():
        if name in FORMATS:
            assert suffix[1:] in FORMATS[name]


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n{} loop\n"


@pytest.mark.parametrize("name", ["photo.eps", "photo.jpg", "photo.png"])
def test_postscript_starts_no_program(tmp_path, monkeypatch, name):
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    (tmp_path / name).write_bytes(POSTSCRIPT)
    assert message(str(tmp_path / name)).endswith(
        f"{name} is PostScript, which is not read; convert it to PNG or JPEG."
    )


def test_all_images_are_opened_by_open_image():
    root = Path(__file__).parents[2]
    files = [
        file for folder in ("idefics_jax", "train", "conversion", "pocket") for file in (root / folder).rglob("*.py")
    ]
    assert [file.name for file in files if "Image.open(" in file.read_text(encoding="utf-8")] == ["images.py"]


def test_unreachable_url():
    assert (
        message("http://127.0.0.1:9/a.png", OSError)
        == "http://127.0.0.1:9/a.png could not be read: Connection refused."
    )


def test_which_strings_are_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("photo.jpg", "my photo.PNG", "notes", "a line\nb.jpg"):
        Path(name).touch()
    sources = ["http://a.b/c", "HTTPS://a.b/c.jpg", "s3://bucket/key", "data:image/png;base64,AAAA", "photo.jpg"]
    sources += ["my photo.PNG", str(tmp_path / "photo.jpg"), "typo.webp"]
    assert [text for text in sources if not is_image_source(text)] == []
    texts = [
        "notes",
        "User:",
        "a line\nb.jpg",
        "see photo.jpg",
        "http://a.b and more",
        "no photo.jpg here",
        "1://2",
        "",
    ]
    texts += ["http://", "data:text/plain,hello", "e.g.", ".jpg"]
    assert [text for text in texts if is_image_source(text)] == []
