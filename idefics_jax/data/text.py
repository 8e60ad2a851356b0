"""Text files and JSON: UTF-8 with or without a byte order mark, and one sentence for each way to be something else."""

import json
from collections.abc import Iterator
from typing import Any

from idefics_jax.utils.json_files import repeated
from idefics_jax.utils.paths import AnyPath, open_regular, read_regular

MARK = b"\xef\xbb\xbf"  # UTF-8's byte order mark
MAX_LINE = 256 * 2**20  # bytes of a line, so that a file without lines does not fill the memory
MAX_FILE = 4 * 2**30  # bytes of a file that is read as a whole


class Number(float):
    """JSON number with a fraction or an exponent; its text is the file's, 3.0 or 1e-3."""

    text: str

    def __new__(cls, text: str) -> "Number":
        self = super().__new__(cls, text)
        self.text = text
        return self

    def __getnewargs__(self) -> tuple[str]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return (self.text,)

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__


def decode(content: bytes) -> str:
    """The text in UTF-8, without a byte order mark.

    Raises:
        ValueError: another encoding.
    """
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content[:4]:
        raise ValueError("it is UTF-16 or UTF-32; save it as UTF-8")
    try:
        return content.removeprefix(MARK).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (byte 0x{content[error.start]:02x}); save it as UTF-8") from error


def parse_json(content: bytes | str) -> Any:
    """The value that `content` is in JSON; NaN and infinity are read, for `fields.text_of` to refuse them.

    Raises:
        ValueError: it is no JSON, has a name twice in an object, or is nested too deep.
    """
    text = decode(content) if isinstance(content, bytes) else content.removeprefix("\ufeff")
    try:
        return json.loads(text, parse_float=Number, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("it is not valid JSON: it is nested too deep") from error
    except json.JSONDecodeError as error:
        raise ValueError(_reason(text, error)) from error


def json_object(content: bytes) -> dict[str, Any]:
    """The object that `content` is in JSON.

    Raises:
        ValueError: something else.
    """
    record = parse_json(content)
    if not isinstance(record, dict):
        raise ValueError(f"it is a JSON {type(record).__name__}, not an object with fields")
    return record


def read_json(path: AnyPath) -> Any:
    """The contents of a JSON file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not JSON.
    """
    content = read_regular(path, MAX_FILE)
    try:
        return parse_json(content)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {str(error).removeprefix('it is not valid JSON: ')}.") from error


def read_lines(path: AnyPath) -> Iterator[tuple[int, int, bytes]]:
    """Number from 1, first byte and content of each line that is not blank, without a byte order mark.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is UTF-16 or UTF-32, or has no lines.
    """
    with open_regular(path) as file:
        number = start = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if number == 1 and (line.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in line[:4]):
                raise ValueError(f"{path} is UTF-16 or UTF-32, or no text; save it as UTF-8.")
            if len(line) > MAX_LINE:
                raise ValueError(f"{path} has more than {MAX_LINE:,} bytes in line {number}; end each record's line.")
            content = line.removeprefix(MARK)
            if content and not content.isspace():
                yield number, start + len(line) - len(content), content
            start += len(line)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if (twice := repeated(pairs)) is not None:
        raise ValueError(f'it has "{twice[:100]}" twice in one object; keep one')
    return dict(pairs)


def _reason(text: str, error: json.JSONDecodeError) -> str:
    rest = text[error.pos :].strip()
    before = text[: error.pos].rstrip()
    if error.msg == "Extra data":
        if not rest.strip(","):
            return "it is not valid JSON: it ends with a comma; take it out"
        return "it is not valid JSON: it holds more than one value; give each a line of its own, without commas between"
    if error.msg.startswith("Illegal trailing comma") or (rest[:1] in ("]", "}") and before.endswith(",")):
        return "it is not valid JSON: it has a comma before a closing bracket; take it out"
    return f"it is not valid JSON: {error}"
