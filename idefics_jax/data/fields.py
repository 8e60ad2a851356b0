"""Columns of a record: which hold its images, its texts and its answers, under which names, and which values count."""

import math
import re
import reprlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeAlias

from idefics_jax.processing.images import IMAGE_SUFFIXES, image_source
from idefics_jax.utils.paths import AnyPath

IMAGES = ("images", "file_names", "image", "file_name")
ANSWERS = ("answer", "answers")
LITERALS = {True: "true", False: "false", None: "null"}

ImageSource: TypeAlias = str | Path  # what load_image reads


def has(record: Mapping[str, Any], name: str) -> bool:
    """Return True if a column says something: null, an empty list and blank text say nothing."""
    value = record.get(name)
    return value is not None and not (isinstance(value, str) and not value.strip()) and value != []


def text_of(value: Any, name: str) -> str:
    """A text; a number is its text as the file has it.

    Raises:
        ValueError: something else, blank text, NaN or infinity, or half of a surrogate pair.
    """
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ValueError(f'its "{name}" is {value}, not a finite number; write a text or leave the record out')
        return str(value)
    if not isinstance(value, str) or not value.strip():
        kind = "empty" if isinstance(value, str) else f"a {type(value).__name__}"
        if value is None or isinstance(value, bool):
            kind = LITERALS[value]
        mend = '; write it as a text, such as "yes" or "no"' if isinstance(value, bool) else ""
        raise ValueError(f'its "{name}" is {kind}, not a text{mend}')
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f'its "{name}" holds half of a surrogate pair; write the whole character') from error
    return value


def texts_of(values: Any, name: str) -> tuple[str, ...]:
    """Texts of a list; its objects have the text under `name`, as annotators' answers do. Null and blank ones say
    nothing.

    Raises:
        ValueError: no list, or a value that is no text.
    """
    if not isinstance(values, list):
        raise ValueError(f'its "{name}" is {reprlib.repr(values)}, not a list of texts')
    texts = []
    for value in values:
        if isinstance(value, dict):
            if name not in value:
                raise ValueError(f'it has {reprlib.repr(value)} among its answers, without "{name}"')
            value = value[name]
        if value is not None and not (isinstance(value, str) and not value.strip()):
            texts.append(text_of(value, name))
    return tuple(texts)


def answers_of(record: Mapping[str, Any]) -> tuple[str, ...]:
    """The annotated answers in "answers" and "answer"; none if both are missing or say nothing.

    Raises:
        ValueError: values that are no texts, or an answer that is not among the answers.
    """
    found = {}
    for name in ANSWERS:
        value = record.get(name)
        values = value if isinstance(value, list) else [value]
        found[name] = texts_of(values, "answer")
    single, several = found["answer"], found["answers"]
    if single and several and not set(single) <= set(several):
        raise ValueError(f'its "answer" {reprlib.repr(single[0])} is not among its "answers"; keep one of them')
    return several or single


def answer_of(record: Mapping[str, Any]) -> str:
    """The answer to learn: "answer", or the most frequent of the "answers".

    Raises:
        ValueError: as `answers_of`, or there is none.
    """
    answers = answers_of(record)
    if not answers:
        raise ValueError('it has no answer: its "answer" is empty, not a text')
    if has(record, "answer"):
        answers = texts_of(record["answer"] if isinstance(record["answer"], list) else [record["answer"]], "answer")
    return Counter(answers).most_common(1)[0][0]


def images_of(record: Mapping[str, Any], folder: AnyPath) -> list[ImageSource]:
    """The images of a record, from the first of `IMAGES` that says something.

    Raises:
        ValueError: two columns that name different images, or something that is no path or URL.
    """
    found: dict[str, list[ImageSource]] = {}
    for name in IMAGES:
        if has(record, name):
            values = record[name] if isinstance(record[name], list) else [record[name]]
            found[name] = [image_of(value, folder) for value in values]
    for name, images in found.items():
        first = next(iter(found))
        if images != found[first]:
            raise ValueError(f'its "{first}" and its "{name}" name different images; keep one of them')
    return next(iter(found.values()), [])


def image_of(value: Any, folder: AnyPath) -> ImageSource:
    """An image's path, from `folder` on where it is relative, or its URL.

    Raises:
        ValueError: no path or URL.
    """
    if not isinstance(value, str) or not value.strip():
        kind = "empty" if isinstance(value, str) else f"a {type(value).__name__}"
        raise ValueError(f"one of its images is {kind}, not a path or URL")
    source = image_source(value)
    if isinstance(source, str):
        return source
    return folder / source if isinstance(folder, Path) else str(folder / source)


def check_unread_images(record: Mapping[str, Any], read: Iterable[str], folder: AnyPath, name: str = "it") -> None:
    """Refuse a record without images if a column that is not read names one.

    Args:
        read: the columns that are read.
        name: what errors call the record or its source.

    Raises:
        ValueError: names the column.
    """
    for column in record.keys() - set(read):
        for text in _strings(record[column]):
            if names_image(text, folder):
                raise ValueError(
                    f'{name} has no image, but its column "{column}" names one ({text[:100]}); name the column "image" '
                    "or leave it out"
                )


def names_image(text: str, folder: AnyPath) -> bool:
    """Return True if a text ends like an image's name, is a `data:` URL of one, or names an image in `folder`."""
    if text.startswith("data:image/"):
        return True
    if not 0 < len(text) <= 1000 or "\n" in text:
        return False
    ending = re.fullmatch(r".*[^\s/.][^/]*\.(\w{1,8})(?:[?#]\S*)?", text)
    if ending and ending[1].lower() in IMAGE_SUFFIXES and len(text.split()) == 1:
        return True
    return isinstance(folder, Path) and len(text) <= 255 and is_image_file(folder / text)


def is_image_file(path: Path) -> bool:
    """Return True for an image on this machine's disk, whatever its name."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            start = file.read(16)
    except (OSError, ValueError):
        return False
    signatures = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*")
    return start.startswith(signatures) or start[8:12] == b"WEBP" or start[4:12] in (b"ftypavif", b"ftypheic")


def _strings(value: Any, depth: int = 3) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif depth and isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item, depth - 1)
