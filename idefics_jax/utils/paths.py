"""Paths that may be on this machine or in a cloud's object store: `gs://bucket/…`, `s3://bucket/…`."""

import io
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from upath import UPath

#: On a disk, or a URL: they have the same methods, and `isinstance(path, Path)` tells them apart.
AnyPath: TypeAlias = Path | UPath
#: What is taken where a path is asked for.
PathLike: TypeAlias = str | os.PathLike | UPath

PIECE = 2**24  # bytes that are read at a time
MAX_JSON = 64 * 2**20  # bytes of a JSON file; the tokenizers of large vocabularies have 20 MB
KINDS = {stat.S_IFDIR: "directory", stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket"}


def as_path(path: PathLike) -> AnyPath:
    """The path that a text stands for, which may be a URL.

    Raises:
        ValueError: the URL's kind is unknown, or the package that serves it is not installed.
    """
    if isinstance(path, UPath):
        return path
    text = os.fspath(path)
    if "://" not in text:
        return Path(text)
    try:
        return UPath(text.rstrip("/"))
    except (ImportError, ValueError) as error:
        raise ValueError(f"{text} cannot be reached: {error}.") from error


@contextmanager
def naming(path: AnyPath) -> Iterator[None]:
    """Give a file's name to the system's errors inside, which those of writing to an open file lack."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def write_whole(path: Path, text: str) -> None:
    """Write a file of any kind, whole or not at all.

    Raises:
        OSError: it cannot be written; an older one is as it was.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with naming(path):
            partial.write_text(text, encoding="utf-8", errors="replace")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def open_regular(path: AnyPath) -> io.IOBase:
    """Open a regular file, or an object in a store, for reading bytes. Symbolic links are followed.

    Nothing else is opened: reading would wait for the writer of a named pipe, and a device may have no end.

    Raises:
        FileNotFoundError: the file does not exist.
        OSError: the file cannot be read.
        ValueError: it is a directory, a named pipe, a socket or a device.
    """
    try:
        if isinstance(path, Path):
            _check_regular(path, path.stat().st_mode)
            return open(path, "rb", opener=_open_regular)
        stored: Any = path.open("rb")
        return stored
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} does not exist.") from error
    except OSError as error:
        raise OSError(f"{path} cannot be read: {error.strerror or error}.") from error
    except NotRegularError:
        raise
    except Exception as error:  # each kind of server has its own, and names may hold null characters
        raise OSError(f"{str(path)!r} cannot be read: {error}.") from error


def read_regular(path: AnyPath, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes; see `open_regular`.

    Raises:
        FileNotFoundError, OSError: the file cannot be read.
        ValueError: it is no regular file, or has more bytes.
    """
    content = bytearray()
    with open_regular(path) as file:
        # Not by the size that the system says: a file of /proc has 0, another grows. And not all of the limit at once,
        # for which memory would be taken before anything is read.
        while len(content) <= limit:
            try:
                piece = file.read(min(PIECE, limit + 1 - len(content)))
            except Exception as error:
                raise OSError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
            if not piece:
                return bytes(content)
            content += piece
    raise ValueError(f"{path} has more than {limit:,} bytes, the most that is read of such a file.")


def read_json(path: AnyPath, limit: int = MAX_JSON) -> Any:
    """Read a JSON file in UTF-8, with or without a byte order mark.

    Raises:
        FileNotFoundError, OSError: the file cannot be read.
        ValueError: it is no regular file, is too large, or is not JSON.
    """
    content = read_regular(path, limit)
    if content.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a git-lfs pointer; run `git lfs pull` there to have the file itself.")
    try:
        return json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start:,}); save it as UTF-8.") from error
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from error
    except RecursionError as error:
        raise ValueError(f"{path} is not valid JSON: its brackets are nested too deep.") from error


class NotRegularError(ValueError):
    """A path that leads to something else than a regular file."""


def _open_regular(path: str, flags: int) -> int:
    """Open a path that was a regular file a moment ago, and check that it still is."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a named pipe would wait for its writer
    try:
        _check_regular(path, os.fstat(descriptor).st_mode)
    except NotRegularError:
        os.close(descriptor)
        raise
    return descriptor


def _check_regular(path: str | Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise NotRegularError(f"{path} is a {KINDS.get(stat.S_IFMT(mode), 'device')}, not a file.")


def reached(url: UPath) -> UPath:
    """The URL itself, once its server has answered for it.

    Raises:
        FileNotFoundError: there is nothing there.
        OSError: the server does not answer, or refuses.
    """
    try:
        url.fs.ls(url.path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{url} does not exist.") from error
    except Exception as error:  # each kind of server has its own
        raise OSError(f"{url} cannot be reached: {error}.") from error
    return url


def read_bytes(path: UPath, start: int, size: int) -> bytes:
    """A range of the bytes of a URL's object.

    Raises:
        OSError: it could not be read, or is shorter than that.
    """
    try:
        data: Any = path.fs.cat_file(path.path, start=start, end=start + size)
    except OSError:
        raise
    except Exception as error:  # each kind of server has its own
        raise OSError(f"{path} cannot be read: {error}.") from error
    if len(data) != size:
        raise OSError(f"{path} gave {len(data):,} of the {size:,} bytes from byte {start:,} on; try again.")
    return data


def kvstore(path: AnyPath) -> dict[str, Any]:
    """The TensorStore specification of a directory; AWS_ENDPOINT_URL and the region are read as other tools do."""
    if isinstance(path, Path):
        return {"driver": "file", "path": f"{path.absolute()}/"}
    scheme, _, rest = str(path).partition("://")
    bucket, _, key = rest.partition("/")
    drivers = {"gs": "gcs", "gcs": "gcs", "s3": "s3"}
    if scheme not in drivers:
        raise ValueError(f"Arrays can be on this machine, gs:// or s3://, not on {scheme}://.")
    spec = {"driver": drivers[scheme], "bucket": bucket, "path": f"{key}/"}
    if scheme == "s3":
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        options = {"endpoint": os.environ.get("AWS_ENDPOINT_URL"), "aws_region": region}
        spec |= {name: value for name, value in options.items() if value}
    return spec
