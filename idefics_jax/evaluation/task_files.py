"""Reading the files of tasks: JSON and lines of it, what their records hold, and where their images are."""

import json
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from idefics_jax.evaluation.examples import Malformed
from idefics_jax.paths import AnyPath, as_path

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}


def read_json(path: AnyPath) -> Any:
    """The contents of a JSON file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error


def read_lines(path: AnyPath) -> Iterator[tuple[int, Any]]:
    """The objects of a JSONL file with the numbers of their lines from 1; a line that is no object gives None."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError:
                value = None
            yield number, value if isinstance(value, dict) else None


def listed(content: Any, file: str, *names: str) -> list[Any]:
    """The first list of these names in a file's contents."""
    for name in names:
        if isinstance(content, dict) and isinstance(content.get(name), list):
            return content[name]
    raise ValueError(f"{file} has no list named {' or '.join(names)}.")


def text_of(record: Any, *names: str) -> Any:
    """The value of the first of `names` that a record has: text or a whole number.

    Raises:
        Malformed: it has none of them, or something else there.
    """
    if not isinstance(record, dict):
        raise Malformed("is no object")
    for name in names:
        value = record.get(name)
        if isinstance(value, str | int) and not isinstance(value, bool):
            return value
        if value is not None:
            raise Malformed(f"has {value!r} as its {name}")
    raise Malformed(f"has no {' or '.join(names)}")


def texts_of(values: Any, name: str) -> tuple[str, ...]:
    """Annotated answers, given as strings or as objects with `name`; what is not text is left out."""
    if not isinstance(values, list):
        raise Malformed(f"has {values!r} where a list of answers belongs")
    texts = (value.get(name) if isinstance(value, dict) else value for value in values)
    return tuple(text for text in texts if isinstance(text, str) and text.strip())


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
                raise Malformed(f"does not fit the pattern of image names {pattern!r} ({error})") from error
        for key in ("file_name", "image", "filename", "image_name"):
            if isinstance(record.get(key), str):
                return image_path(folder, _with_suffix(record[key]))
        return image_path(folder, f"{text_of(record, 'image_id', 'id')}.jpg")

    return name


def _with_suffix(name: str) -> str:
    """TextCaps names images without `.jpg`."""
    return name if Path(name).suffix.lower() in IMAGE_SUFFIXES else f"{name}.jpg"
