"""Kinds of files that records are read from, on a disk or in an object store: lines, CSV and array_record.

All can be pickled: no open file is part of them.
"""

import base64
import csv
from array import array
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from idefics_jax.data.text import decode, json_object, parse_json, read_lines
from idefics_jax.utils.paths import AnyPath, read_bytes

LISTS = {"images", "file_names", "answers", "candidates", "messages", "content"}  # columns of CSV that hold JSON lists


class Source:
    """Records by number, each a dict as a JSON object is; `__getitem__` raises ValueError for one that is none.

    Attributes:
        name: what people call it, its path.
        folder: what relative paths of images in the records start from.
        spec: what it was opened for, a path or a glob, perhaps with a weight.
        mixture: the spec and its weight; None: weighs as many as it has records.
        columns: their names, where the file says them; None where each record does.
    """

    spec: str = ""
    mixture: tuple[str, float] | None = None
    columns: tuple[str, ...] | None = None

    def __init__(self, path: AnyPath):
        self.path = path
        self.name = str(path)
        self.folder = path.parent

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, number: int) -> dict[str, Any]:
        raise NotImplementedError

    def label(self, number: int) -> int:
        """The number of a record for a person: its line, or counted from 1."""
        return number + 1

    def describe(self, number: int) -> str:
        """Name a record for a person."""
        return f"{self.name} record {self.label(number)}"


class JsonLines(Source):
    """A JSON object on each line that is not blank. Only where the lines are is kept in memory."""

    def __init__(self, path: AnyPath):
        super().__init__(path)
        starts, sizes, lines = array("q"), array("q"), array("q")
        first = b""
        for line, start, content in read_lines(path):
            first = first or content.strip()
            starts.append(start)
            sizes.append(len(content))
            lines.append(line)
        if first.startswith(b"[") and (len(lines) == 1 or not _is_json(first)):
            raise ValueError(f"{path} is one JSON list; write each of its records on a line of its own.")
        if first == b"{":
            raise ValueError(f"{path} has a record over several lines; write each record on a line of its own.")
        self._starts, self._sizes, self._lines = (np.array(numbers, np.int64) for numbers in (starts, sizes, lines))

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return json_object(read_range(self.path, int(self._starts[number]), int(self._sizes[number])))

    def label(self, number: int) -> int:
        return int(self._lines[number])

    def describe(self, number: int) -> str:
        return f"{self.name} line {self.label(number)}"


class CsvTable(Source):
    """Rows of comma-separated values below their columns' names; semicolons or tabs where the first line has those.

    An empty cell is null. The columns `LISTS` may hold JSON lists. Only where the rows are is kept in memory.
    """

    def __init__(self, path: AnyPath):
        super().__init__(path)
        starts, sizes, lines = array("q"), array("q"), array("q")
        self._delimiter = ","
        header: list[str] = []
        read = _Lines(path)
        try:
            for content in read:
                self._delimiter = max(",;\t", key=content.count)
                header = next(csv.reader([content], delimiter=self._delimiter, strict=True))
                break
            rows = csv.reader(read, delimiter=self._delimiter, strict=True)
            while True:
                read.begin()
                row = next(rows, None)
                if row is None:
                    break
                starts.append(read.start)
                sizes.append(read.end - read.start)
                lines.append(read.line)
        except csv.Error as error:
            raise ValueError(f"{path} is not CSV: {error} (line {read.number}).") from error
        names = [name.strip() for name in header]
        twice = next((name for name in names if name and names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f'{path} has two columns "{twice}"; keep one of them.')
        self.columns = tuple(names)
        self._starts, self._sizes, self._lines = (np.array(numbers, np.int64) for numbers in (starts, sizes, lines))

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, number: int) -> dict[str, Any]:
        assert self.columns is not None
        text = decode(read_range(self.path, int(self._starts[number]), int(self._sizes[number])))
        row = next(csv.reader(StringIO(text, newline=""), delimiter=self._delimiter))
        if len(row) != len(self.columns):
            raise ValueError(f"it has {len(row)} values for {len(self.columns)} columns")
        cells = zip(self.columns, row, strict=True)
        return {name: _cell(name, text) for name, text in cells if name}

    def label(self, number: int) -> int:
        return int(self._lines[number])

    def describe(self, number: int) -> str:
        return f"{self.name} line {self.label(number)}"


class _Lines(Iterator[str]):
    """Lines of a text for `csv`, and which of them a row took: first byte, byte after the last, number of the first."""

    def __init__(self, path: AnyPath):
        self._path = path
        self._lines = read_lines(path)
        self.begin()
        self.number = 0

    def begin(self) -> None:
        """Expect a row."""
        self.start, self.end, self.line = -1, 0, 0

    def __next__(self) -> str:
        self.number, start, content = next(self._lines)
        if self.start < 0:
            self.start, self.line = start, self.number
        self.end = start + len(content)
        try:
            return decode(content)
        except ValueError as error:
            raise ValueError(f"{self._path} line {self.number}: {error}.") from error


class ArrayRecords(Source):
    """A JSON object in each record. From an object store the file is copied to this machine's disk."""

    def __init__(self, path: AnyPath):
        super().__init__(path)
        try:
            import fsspec
            import grain
        except ImportError as error:
            raise ValueError(f"{path} is read by grain; pip install grain to read it.") from error
        local = str(path) if isinstance(path, Path) else fsspec.open_local(f"simplecache::{path}")
        try:
            self._records: Any = grain.sources.ArrayRecordDataSource(local)
        except Exception as error:  # what the library raises is a bare Exception or RuntimeError
            raise ValueError(f"{path} is not an array_record file, or is damaged: {error}.") from error

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, number: int) -> dict[str, Any]:
        try:
            content = self._records[int(number)]
        except Exception as error:  # the same
            raise ValueError(f"it cannot be read: {error}") from error
        return json_object(content)


def read_range(path: AnyPath, start: int, size: int) -> bytes:
    """A range of a file's bytes.

    Raises:
        ValueError: it ends before.
        OSError: it cannot be read.
    """
    if not isinstance(path, Path):
        return read_bytes(path, start, size)
    with path.open("rb") as file:
        file.seek(start)
        content = file.read(size)
    if len(content) < size:
        raise ValueError("the file ends in the middle of it; write it again")
    return content


def data_url(content: bytes) -> str:
    """An image file's bytes as an image source that `load_image` reads, which finds out the format itself."""
    return "data:image/unknown;base64," + base64.b64encode(content).decode("ascii")


def _is_json(content: bytes) -> bool:
    try:
        parse_json(content)
    except ValueError:
        return False
    return True


def _cell(name: str, text: str) -> Any:
    if not text.strip():
        return None
    if name in LISTS and text.lstrip().startswith("["):
        try:
            return parse_json(text)
        except ValueError as error:
            raise ValueError(f'its "{name}" begins as a JSON list, but {error}') from error
    return text
