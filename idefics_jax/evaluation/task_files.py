"""Reading the benchmarks' own JSON: its lists, the ids of its records, and where their images are."""

import reprlib
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

from idefics_jax.data.records import is_records
from idefics_jax.data.text import read_json
from idefics_jax.processing.images import IMAGE_SUFFIXES
from idefics_jax.utils.paths import as_path


def read_benchmark(file: str) -> Any:
    """The contents of a benchmark's JSON file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not JSON, or holds records for `eval jsonl`.
    """
    mend = f"{file} holds a record for each question; idefics-jax eval jsonl --data {file} reads it."
    if is_records(as_path(file)):
        raise ValueError(mend)
    try:
        return read_json(as_path(file))
    except ValueError as error:
        if "more than one value" in str(error):
            raise ValueError(mend) from error
        raise


def listed(content: Any, file: str, *names: str) -> list[Any]:
    """The first list of these names in a file's contents."""
    for name in names:
        if isinstance(content, dict) and isinstance(content.get(name), list):
            return content[name]
    raise ValueError(f"{file} has no list named {' or '.join(names)}.")


def id_of(record: Any, *names: str) -> int | str:
    """The first of `names` that a record has: text or a whole number.

    Raises:
        ValueError: the record has none of them, or something else there.
    """
    if not isinstance(record, dict):
        raise ValueError("it is no object")
    for name in names:
        value = record.get(name)
        if isinstance(value, str | int) and not isinstance(value, bool):
            return value
        if value is not None:
            raise ValueError(f"it has {reprlib.repr(value)} as its {name}")
    raise ValueError(f"it has no {' or '.join(names)}")


def image_path(folder: str | None, name: str) -> str:
    """An image's path in its folder; URLs and absolute paths stay as they are."""
    if folder is None or "://" in name or Path(name).is_absolute():
        return name
    return str(as_path(folder) / name)


def naming(folder: str, pattern: str | None) -> Callable[[Any], str]:
    """Gives a record's image: by the pattern, or as the record names it, or `{image_id}.jpg`.

    Raises:
        ValueError: the pattern names none of the record's values, or is none.
    """
    if pattern is not None:
        try:
            named = [name for _, name, _, _ in string.Formatter().parse(pattern) if name is not None]
        except ValueError as error:
            raise ValueError(f"The pattern of image names {pattern!r} is none: {error}.") from error
        if not named:
            raise ValueError(f"The pattern of image names {pattern!r} names nothing, such as {{image_id}}.")

    def name(record: Any) -> str:
        if pattern is not None:
            try:
                return image_path(folder, pattern.format_map(record))
            except (KeyError, ValueError, IndexError, TypeError) as error:
                raise ValueError(f"it does not fit the pattern of image names {pattern!r} ({error})") from error
        for key in ("file_name", "image", "filename", "image_name"):
            if isinstance(record.get(key), str):
                return image_path(folder, _with_suffix(record[key]))
        return image_path(folder, f"{id_of(record, 'image_id', 'id')}.jpg")

    return name


def is_image_name(name: str) -> bool:
    """Return True if a file's name ends as an image's does."""
    return Path(name).suffix.lower().removeprefix(".") in IMAGE_SUFFIXES


def _with_suffix(name: str) -> str:
    """The name, which TextCaps gives without `.jpg`."""
    return name if is_image_name(name) else f"{name}.jpg"
