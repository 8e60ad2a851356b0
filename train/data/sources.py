"""The kinds of files that records are read from, on a disk or in an object store.

All can be pickled: no open file is part of them.
"""

import base64
import json
import tarfile
from array import array
from pathlib import Path
from typing import Any

import fsspec
import grain
import numpy as np

from idefics_jax.paths import AnyPath, read_bytes

IMAGE_SUFFIXES = {"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff"}


class Source:
    """Records by number, each a dict as a JSON object is; `__getitem__` raises ValueError for one that is none.

    Attributes:
        name: what people call it, its path.
        folder: what relative paths of images in the records start from.
        mixture: the spec that it was opened for and its weight; None: weighs as many as it has records.
    """

    mixture: tuple[str, float] | None = None

    def __init__(self, path: AnyPath):
        self.path = path
        self.name = str(path)
        self.folder = path.parent

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, number: int) -> dict[str, Any]:
        raise NotImplementedError

    def describe(self, number: int) -> str:
        """Names a record for a person, who counts from 1."""
        return f"{self.name} record {number + 1}"


class JsonLines(Source):
    """A JSON object on each line that is not blank. Only where the lines are is kept in memory."""

    def __init__(self, path: AnyPath):
        super().__init__(path)
        starts, sizes, lines, start = array("q"), array("q"), array("q"), 0
        with path.open("rb") as file:
            for line, content in enumerate(file, 1):
                if not content.isspace():
                    starts.append(start)
                    sizes.append(len(content))
                    lines.append(line)
                start += len(content)
        self._starts, self._sizes, self._lines = (np.array(numbers, np.int64) for numbers in (starts, sizes, lines))

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return json_object(_read(self.path, int(self._starts[number]), int(self._sizes[number])))

    def describe(self, number: int) -> str:
        return f"{self.name} line {self._lines[number]}"


class TarShard(Source):
    """WebDataset: files whose names agree up to the first dot are one record, and its images keep their order.

    `KEY.json` holds the record's fields, `KEY.txt` its "text", `KEY.jpg`, `KEY.0.png` and so on its "images".
    """

    def __init__(self, path: AnyPath):
        super().__init__(path)
        samples: dict[str, list[tuple[str, int, int]]] = {}
        try:
            with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    folder, slash, name = member.name.rpartition("/")
                    key, _, suffixes = name.partition(".")
                    suffix = suffixes.rpartition(".")[2].lower()
                    if member.isfile() and key and suffix in IMAGE_SUFFIXES | {"txt", "json"}:
                        part = (suffix, member.offset_data, member.size)
                        samples.setdefault(folder + slash + key, []).append(part)
        except tarfile.TarError as error:
            raise ValueError(f"{path} is not an uncompressed tar archive, or is damaged: {error}.") from error
        self._samples = list(samples.items())

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, number: int) -> dict[str, Any]:
        record: dict[str, Any] = {}
        images = []
        for suffix, start, size in self._samples[number][1]:
            content = _read(self.path, start, size)
            if suffix == "json":
                record |= json_object(content)
            elif suffix == "txt":
                record["text"] = content.decode("utf-8")  # UnicodeDecodeError is a ValueError
            else:
                images.append(data_url(content))
        return record | ({"images": images} if images else {})

    def describe(self, number: int) -> str:
        return f"{self.name} sample {self._samples[number][0]}"


class ArrayRecords(Source):
    """A JSON object in each record. From an object store the file is copied to this machine's disk."""

    def __init__(self, path: AnyPath):
        super().__init__(path)
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


class SavedDataset(Source):
    """What `Dataset.save_to_disk` of Hugging Face `datasets` wrote. Class labels become their names."""

    def __init__(self, path: AnyPath):
        super().__init__(path)
        self.folder = path
        try:
            import datasets
        except ImportError as error:
            raise ValueError(f"{path} was saved by Hugging Face datasets; pip install datasets to read it.") from error
        if (path / "dataset_dict.json").is_file():
            raise ValueError(f"{path} holds several splits; give one of them, as in {path}/train.")
        dataset: Any = datasets.load_from_disk(str(path))
        labels = {name: kind for name, kind in dataset.features.items() if isinstance(kind, datasets.ClassLabel)}
        self._labels = {name: kind.names for name, kind in labels.items()}
        self._table = dataset.with_format("arrow")  # images as they are stored, not decoded

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, number: int) -> dict[str, Any]:
        (record,) = self._table[int(number) : int(number) + 1].to_pylist()
        for name, names in self._labels.items():
            if record[name] is not None and record[name] >= 0:  # -1: the record has no label
                record[name] = names[record[name]]
        return _with_image_sources(record)


def _read(path: AnyPath, start: int, size: int) -> bytes:
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


def json_object(content: bytes) -> dict[str, Any]:
    """The object that `content` is in JSON.

    Raises:
        ValueError: it is something else.
    """
    try:
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not valid JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"it is a JSON {type(record).__name__}, not an object with fields")
    return record


def data_url(content: bytes) -> str:
    """An image file's bytes as an image source that `load_image` reads, which finds out the format itself."""
    return "data:image/unknown;base64," + base64.b64encode(content).decode("ascii")


def _with_image_sources(value: Any) -> Any:
    """`value` with the images as `datasets` stores them, {"bytes", "path"}, as URLs or paths."""
    if isinstance(value, list):
        return [_with_image_sources(item) for item in value]
    if isinstance(value, dict):
        if value.keys() == {"bytes", "path"}:
            return value["path"] if value["bytes"] is None else data_url(value["bytes"])
        return {name: _with_image_sources(item) for name, item in value.items()}
    return value
