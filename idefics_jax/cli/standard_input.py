"""Standard input as text: UTF-8, and not without an end."""

import sys
from collections.abc import Iterator

LIMIT = 64 * 2**20  # bytes of a prompt, or of chat messages with images in them
NAME = "Standard input"


def read_all() -> str:
    """Read standard input to its end.

    Raises:
        ValueError: it is not UTF-8, or too long.
    """
    content = sys.stdin.buffer.read(LIMIT + 1)
    if len(content) > LIMIT:
        raise ValueError(f"{NAME} has more than {LIMIT:,} bytes, the most that is read.")
    return _text(content, NAME)


def read_lines() -> Iterator[str | ValueError]:
    """Read standard input line by line; a line that is not UTF-8 is an error in its place.

    Raises:
        ValueError: a line is too long.
    """
    number = 0
    while line := sys.stdin.buffer.readline(LIMIT + 1):
        number += 1
        if len(line) > LIMIT:
            raise ValueError(f"Line {number} of {NAME.lower()} has more than {LIMIT:,} bytes, the most that is read.")
        try:
            yield _text(line, f"Line {number} of {NAME.lower()}").strip()
        except ValueError as error:
            yield error


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 text (byte {error.start:,}).") from error
