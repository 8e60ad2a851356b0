"""Files of one JSON object a line, each with a "step": added to by a run, and cut back when it goes on from before."""

import errno
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file, none where it is missing; lines that a stopped process left broken are passed by."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            if (value := _parsed(line)) is not None:
                yield value


def append(path: Path, objects: list[dict[str, Any]]) -> None:
    """Adds lines: all of them, or none.

    Raises:
        OSError: the disk is full, or the file cannot be written.
    """
    data = "".join(json.dumps(_finite(one), ensure_ascii=False, allow_nan=False) + "\n" for one in objects)
    data = data.encode(errors="replace")  # half a surrogate pair is no UTF-8
    with path.open("ab", buffering=0) as file:
        before = file.tell()
        try:
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
        except OSError:
            file.truncate(before)
            raise


def cut(path: Path, step: int) -> None:
    """Takes away what comes after `step` and what a stopped process left broken; needs no space on the disk."""
    if not path.is_file():
        return
    with path.open("rb+") as file:
        kept = 0
        for line in file:
            value = _parsed(line)
            if value is None or value["step"] > step or not line.endswith(b"\n"):
                break
            kept += len(line)
        file.truncate(kept)


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and isinstance(value.get("step"), int) else None


def _finite(line: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no NaN and no infinity: they are null."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in line.items()
    }
