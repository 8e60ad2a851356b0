"""Types of options: each refuses what no command can use, before anything is loaded."""

import math
import re
from argparse import ArgumentTypeError
from collections.abc import Callable

MANY = 1_000_000_000  # more of anything than a machine holds


def whole(low: int, high: int = MANY) -> Callable[[str], int]:
    """Return the type of whole numbers from `low` to `high`."""

    def parse(text: str) -> int:
        if re.fullmatch(r"[+-]?[0-9]{1,30}", text.strip()) and low <= int(text) <= high:
            return int(text)
        raise ArgumentTypeError(f"{_shown(text)} must be a whole number{_range(low, high)}")

    return parse


def number(low: float, high: float, above: bool = False) -> Callable[[str], float]:
    """Return the type of numbers from `low` to `high`; `above`: greater than `low`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high or (above and value == low):  # nor NaN, of which no comparison holds
            start = f"above {low:g}, at most {high:g}" if above else f"from {low:g} to {high:g}"
            raise ArgumentTypeError(f"{_shown(text)} must be a number {start}")
        return value

    return parse


SEED = whole(0, 2**32 - 1)
BEAMS = whole(1, 1000)
PENALTY = number(-10, 10)  # a power of the number of tokens
TOKENS = whole(1)


def text(given: str) -> str:
    """Return text that is Unicode; a shell passes on other bytes, too.

    Raises:
        ArgumentTypeError: it is not UTF-8.
    """
    try:
        given.encode()
    except UnicodeEncodeError as error:
        raise ArgumentTypeError(f"character {error.start + 1} of {_shown(given)} is not UTF-8") from error
    return given


def address(given: str) -> str:
    """Return HOST:PORT of a coordinator, or "auto".

    Raises:
        ArgumentTypeError: it is neither.
    """
    host, _, port = given.rpartition(":")
    if given != "auto" and not (host and re.fullmatch(r"[0-9]{1,5}", port) and 0 < int(port) < 2**16):
        raise ArgumentTypeError(f"{_shown(given)} must be HOST:PORT, with a port from 1 to 65535, or auto")
    return given


def size(given: str) -> int:
    """Return bytes, of a number with or without KB, MB or GB (powers of 1000) behind it."""
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
    number, factor = (given[:-2], units[given[-2:].upper()]) if given[-2:].upper() in units else (given, 1)
    try:
        result = int(float(number) * factor)
    except (ValueError, OverflowError):
        result = 0
    if not 1 <= result <= 2**60:
        raise ArgumentTypeError(f"{_shown(given)} is not a size; write it as 500MB or 5GB")
    return result


def _range(low: int, high: int) -> str:
    return f", {low} or more" if high == MANY else f" from {low} to {high}"


def _shown(given: str) -> str:
    return ascii(given if len(given) <= 40 else f"{given[:40]}...")
