"""Paths that may be on this machine or in a cloud's object store: `gs://bucket/…`, `s3://bucket/…`."""

import os
from pathlib import Path
from typing import Any, TypeAlias

from upath import UPath

#: On a disk, or a URL: they have the same methods, and `isinstance(path, Path)` tells them apart.
AnyPath: TypeAlias = Path | UPath
#: What is taken where a path is asked for.
PathLike: TypeAlias = str | os.PathLike | UPath


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
