"""Tables of Arrow: parquet files, and what Hugging Face `datasets` saved. Class labels become their names."""

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np

from idefics_jax.data.sources import Source, data_url
from idefics_jax.utils.paths import AnyPath, open_regular

MAX_GROUP = 4 * 2**30  # bytes of a row group, which is read as a whole
ROOM = 2**30  # bytes of row groups that are kept for the next records


class ParquetTable(Source):
    """A record in each row. Row groups are read when a record is asked for, and the last ones are kept."""

    def __init__(self, path: AnyPath):
        super().__init__(path)
        parquet = _parquet(path)
        try:
            with open_regular(path) as file:
                found = parquet.ParquetFile(file)
                groups = [found.metadata.row_group(group) for group in range(found.metadata.num_row_groups)]
                schema = found.schema_arrow
        except Exception as error:  # Arrow has its own kinds
            if isinstance(error, ValueError) and str(path) in str(error):
                raise
            raise ValueError(f"{path} is not a parquet file, or is damaged: {error}.") from error
        large = max((group.total_byte_size for group in groups), default=0)
        if large > MAX_GROUP:
            raise ValueError(
                f"{path} has {large:,} bytes in one row group; write it with row groups of {MAX_GROUP:,} bytes at most."
            )
        self._ends = np.cumsum([group.num_rows for group in groups], dtype=np.int64)
        self.columns = tuple(schema.names)
        self._labels = _labels(json.loads((schema.metadata or {}).get(b"huggingface", b"{}")))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, number: int) -> dict[str, Any]:
        group = int(np.searchsorted(self._ends, number, side="right"))
        start = int(number) - (int(self._ends[group - 1]) if group else 0)
        try:
            (record,) = _group(self.path, group).slice(start, 1).to_pylist()
        except (OSError, MemoryError):
            raise
        except Exception as error:  # Arrow has its own kinds
            raise ValueError(f"it cannot be read: {error}") from error
        return _readable(record, self._labels)


class SavedDataset(Source):
    """What `Dataset.save_to_disk` of Hugging Face `datasets` wrote."""

    def __init__(self, path: AnyPath):
        super().__init__(path)
        self.folder = path
        try:
            import datasets
        except ImportError as error:
            raise ValueError(f"{path} was saved by Hugging Face datasets; pip install datasets to read it.") from error
        if (path / "dataset_dict.json").is_file():
            raise ValueError(f"{path} holds several splits; give one of them, as in {path}/train.")
        try:
            dataset: Any = datasets.load_from_disk(str(path))
        except (OSError, MemoryError):
            raise
        except Exception as error:  # a damaged state.json raises anything
            raise ValueError(f"{path} is not what Hugging Face datasets saved, or is damaged: {error}.") from error
        self.columns = tuple(dataset.column_names)
        labels = {name: kind for name, kind in dataset.features.items() if isinstance(kind, datasets.ClassLabel)}
        self._labels = {name: kind.names for name, kind in labels.items()}
        self._table = dataset.with_format("arrow")  # images as they are stored, not decoded

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, number: int) -> dict[str, Any]:
        (record,) = self._table[int(number) : int(number) + 1].to_pylist()
        return _readable(record, self._labels)


_groups: OrderedDict[tuple[str, int], Any] = OrderedDict()
_reading = threading.Lock()


def _group(path: AnyPath, group: int) -> Any:
    """A row group as a table of Arrow, kept in `_groups` while there is room."""
    key = (str(path), group)
    with _reading:
        if key not in _groups:
            with path.open("rb") as file:
                _groups[key] = _parquet(path).ParquetFile(file).read_row_group(group)
            while len(_groups) > 1 and sum(table.nbytes for table in _groups.values()) > ROOM:
                _groups.popitem(last=False)
        _groups.move_to_end(key)
        return _groups[key]


def _parquet(path: AnyPath) -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError(f"{path} is read by pyarrow; pip install pyarrow to read it.") from error
    return parquet


def _labels(stored: Mapping[str, Any]) -> dict[str, list[str]]:
    """Names of classes by column, of the features that `datasets` leaves in a parquet file."""
    features = stored.get("info", {}).get("features", {})
    kinds = {name: kind for name, kind in features.items() if isinstance(kind, dict)}
    return {name: kind["names"] for name, kind in kinds.items() if kind.get("_type") == "ClassLabel"}


def _readable(record: dict[str, Any], labels: Mapping[str, list[str]]) -> dict[str, Any]:
    """A record with the names of its classes, and its images as URLs or paths."""
    for name, names in labels.items():
        if record.get(name) is not None and record[name] >= 0:  # -1: the record has no label
            record[name] = names[record[name]]
    return _with_image_sources(record)


def _with_image_sources(value: Any) -> Any:
    """`value` with images as `datasets` stores them, bytes or {"bytes", "path"}, as URLs or paths."""
    if isinstance(value, bytes):
        return data_url(value)
    if isinstance(value, list):
        return [_with_image_sources(item) for item in value]
    if isinstance(value, dict):
        if value.keys() == {"bytes", "path"}:
            return value["path"] if value["bytes"] is None else data_url(value["bytes"])
        return {name: _with_image_sources(item) for name, item in value.items()}
    return value
