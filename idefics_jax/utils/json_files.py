"""JSON files of checkpoints, and checks of what they hold: anybody can have written them."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from types import UnionType
from typing import Any

from idefics_jax.utils.paths import AnyPath, read_json

NAMES = {dict: "an object", list: "a list", str: "a string", bool: "true or false", int: "a whole number"}
NAMES |= {float: "a number", tuple: "a tuple", type(None): "null"}


def read_object(path: AnyPath) -> dict[str, Any]:
    """Read the object in a JSON file.

    Raises:
        FileNotFoundError, OSError: the file cannot be read.
        ValueError: it is not JSON, or holds anything but an object.
    """
    values = read_json(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {NAMES[type(values)]} instead of an object; replace the file.")
    return values


def check_types(values: Mapping[str, Any], types: Mapping[str, Any], where: object) -> None:
    """Refuse fields of a wrong type; a field may be missing or null.

    Args:
        values: the fields.
        types: for the names of some of them, a type or a union of types; `float` takes whole numbers too.
        where: names the file or object in the error.

    Raises:
        ValueError: a value has another type, or is NaN or infinite.
    """
    for name, wanted in types.items():
        value, kinds = values.get(name), wanted.__args__ if isinstance(wanted, UnionType) else (wanted,)
        if value is None:
            continue
        if type(value) not in kinds and not (type(value) is int and float in kinds):
            names = " or ".join(NAMES[kind] for kind in kinds)
            raise ValueError(f"{where}: {name} must be {names}, but is {shown(value)}.")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{where}: {name} must be a finite number, but is {value}.")


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of a JSON file, for `object_pairs_hook`.

    Raises:
        ValueError: a name comes twice.
    """
    if (twice := repeated(pairs)) is not None:
        raise ValueError(f"{shown(twice)} comes twice")
    return dict(pairs)


def repeated(pairs: list[tuple[str, Any]]) -> str | None:
    """Return the first name that comes twice in an object of a JSON file, in one pass; None if there is none."""
    counts = Counter(name for name, _ in pairs)
    return None if len(counts) == len(pairs) else next(name for name, count in counts.items() if count > 1)


def shown(value: Any) -> str:
    """Return a value as JSON, cut to a length that fits a sentence."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=repr)
    except (ValueError, RecursionError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:76]} ..."
