"""One row of the table of bad inputs, and helpers that write the bad files."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image


class Folder(NamedTuple):
    """Files of one case.

    Attributes:
        path: an empty folder, `{d}` in the command.
        checkpoint: a small good checkpoint, `{checkpoint}` in the command; never to be changed.
    """

    path: Path
    checkpoint: Path

    def write(self, name: str, content: str | bytes | list | dict) -> Path:
        """Writes a file; lists and dicts as JSON."""
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(content, str | bytes):
            content = json.dumps(content)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return file

    def lines(self, name: str, *records: Any) -> Path:
        """Writes a JSONL file."""
        return self.write(name, "".join(json.dumps(record) + "\n" for record in records))

    def image(self, name: str = "good.png", size: tuple[int, int] = (32, 24)) -> Path:
        """Writes a good image of one color."""
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((size[1], size[0], 3), 120, np.uint8)).save(file)
        return file

    def copy(self, name: str = "model") -> Path:
        """Copies the good checkpoint, to be damaged."""
        return Path(shutil.copytree(self.checkpoint, self.path / name))


class Case(NamedTuple):
    """A command that must end with one sentence.

    Attributes:
        name: says what is bad, in a few words; unique in its module.
        command: the program and its arguments; the program is `generate`, `chat`, `eval`, `demo`, `train`, `convert`,
            `inspect` or `verify`. `{d}` is the case's folder and `{checkpoint}` a small good checkpoint.
        says: regular expression that the sentence on standard error matches.
        files: writes the case's files.
        stdin: what standard input holds.
        seconds: after which the command counts as hanging.
    """

    name: str
    command: Sequence[str]
    says: str
    files: Callable[[Folder], Any] | None = None
    stdin: bytes = b""
    seconds: float = 60.0
