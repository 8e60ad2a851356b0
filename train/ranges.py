"""Ranges of numeric options, declared as part of their types and checked before anything is loaded."""

import dataclasses
import math
import types
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints


class Range(NamedTuple):
    """Finite numbers that an option accepts.

    Attributes:
        low, high: limits; there is a `low` where there is a `high`.
        above, below: exclude `low`, or `high`.
        also: further numbers that are accepted.
    """

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    also: tuple[float, ...] = ()

    def __contains__(self, value: Any) -> bool:
        if not math.isfinite(value):
            return False
        low = value > self.low if self.above else value >= self.low
        high = value < self.high if self.below else value <= self.high
        return (low and high) or value in self.also

    def __str__(self) -> str:
        if self.high == math.inf:
            text = "that is finite"
            if self.low > -math.inf:
                text += f" and {'above' if self.above else 'at least'} {_plain(self.low)}"
        else:
            text = f"from {_plain(self.low)} to {_plain(self.high)}" + (", which is excluded" if self.below else "")
        return text + "".join(f", or {_plain(value)}" for value in self.also)


LARGEST = 2**31 - 1
Count = Annotated[int, Range(1, LARGEST)]
Number = Annotated[int, Range(0, LARGEST)]
Size = Annotated[int, Range(1, LARGEST, also=(-1,))]
Seed = Annotated[int, Range(0, 2**32 - 1)]
Positive = Annotated[float, Range(0, above=True)]
NotNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
ShareBelowOne = Annotated[float, Range(0, 1, below=True)]


def check_ranges(config: Any, prefix: str = "--") -> None:
    """Check every number in a dataclass and in the dataclasses inside it.

    Raises:
        ValueError: a number is out of its range; the sentence names option, value and range.
    """
    for name, hint in get_type_hints(type(config), include_extras=True).items():
        value = getattr(config, name)
        option = prefix + name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            check_ranges(value, f"{option}.")
        elif value is not None and (range := _range(hint)) is not None and value not in range:
            raise ValueError(f"{option} {_plain(value)} is out of range; give a number {range}.")


def _range(hint: Any) -> Range | None:
    if get_origin(hint) is Annotated:
        return next((part for part in get_args(hint) if isinstance(part, Range)), None)
    if get_origin(hint) in (Union, types.UnionType):
        return next((range for part in get_args(hint) if (range := _range(part)) is not None), None)
    return None


def _plain(value: float) -> str:
    return str(int(value)) if math.isfinite(value) and value == int(value) else f"{value:g}"
