"""Files of records, on a disk or in an object store, opened by their kind: each a sequence with random access."""

import glob
import math
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from idefics_jax.data.fields import IMAGES, check_unread_images, has
from idefics_jax.data.forms import columns_read
from idefics_jax.data.shards import TarShard
from idefics_jax.data.sources import ArrayRecords, CsvTable, JsonLines, Source
from idefics_jax.data.tables import ParquetTable, SavedDataset
from idefics_jax.utils.paths import AnyPath, as_path

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
OPENERS = 16  # threads that open the files of a glob: in an object store that is waiting for the most part
SAMPLE = 100  # records of a source that are looked at before it is read
SUFFIXES = {
    ".jsonl": JsonLines,
    ".ndjson": JsonLines,
    ".csv": CsvTable,
    ".tsv": CsvTable,
    ".parquet": ParquetTable,
    ".tar": TarShard,
    ".array_record": ArrayRecords,
    ".arrayrecord": ArrayRecords,
}
KINDS = (
    f"a folder with {METADATA[0]} (or .csv, .parquet), a .jsonl, .csv or .parquet file, a WebDataset .tar, an "
    ".array_record file or a directory saved by Hugging Face datasets"
)


def open_sources(specs: Sequence[str]) -> list[Source]:
    """The sources that `specs` name: `PATH`, or `PATH=0.3` with a weight in the mixture; globs are expanded, sorted.

    Files of one glob share its weight: they have the same `mixture`, (spec, weight), which is None without one.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: no specs, an unknown kind of file, a source without records, a weight that is not a positive number,
            or weights for some specs only.
    """
    if not specs:
        raise ValueError(f"There is no data: give {KINDS}.")
    sources: list[Source] = []
    for spec in specs:
        path, weight = _path_and_weight(spec)
        expanded = _expanded(path)
        with ThreadPoolExecutor(OPENERS) as openers:
            opened = openers.map(open_source, expanded)
        for found, source in zip(expanded, opened, strict=True):
            if not len(source):
                raise ValueError(f"{found} holds no records; leave it out.")
            source.spec, source.mixture = spec, None if weight is None else (spec, weight)
            sources.append(source)
    without = [source.name for source in sources if source.mixture is None]
    if 0 < len(without) < len(sources):
        raise ValueError(f"{without[0]} has no weight but others have; give every source one (PATH=0.3), or none.")
    return sources


def _path_and_weight(spec: str) -> tuple[str, float | None]:
    path, equals, text = spec.rpartition("=")
    if not equals or ("://" not in spec and Path(spec).exists()):
        return spec, None
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise ValueError(f"The weight in {spec} is {text!r}; give a positive number, as in {path}=0.3.")
    return path, weight


def _expanded(path: str) -> Sequence[AnyPath]:
    if "://" in path:
        return _expanded_there(path)
    expanded = Path(path).expanduser()
    if expanded.exists():
        return [expanded]
    found = sorted(glob.glob(str(expanded), recursive=True))
    if not found:
        raise _nothing(path)
    return [Path(name) for name in found]


def _expanded_there(path: str) -> Sequence[AnyPath]:
    url = as_path(path)
    assert not isinstance(url, Path)
    try:
        if not glob.has_magic(path):
            found = [url] if url.exists() else []
        else:
            found = [url.with_segments(f"{url.protocol}://{name}") for name in sorted(url.fs.glob(url.path))]
    except Exception as error:  # each kind of server has its own
        raise OSError(f"{path} cannot be reached: {error}.") from error
    if not found:
        raise _nothing(path)
    return found


def _nothing(path: str) -> FileNotFoundError:
    kind = "No file matches" if glob.has_magic(path) else "There is no"
    return FileNotFoundError(f"{kind} {path}; give {KINDS}.")


def check_data(specs: Sequence[str], template: str | None) -> None:
    """Look at the first file of each spec, before time is spent on a model.

    Raises:
        FileNotFoundError, ValueError: as `open_sources` and `check_columns`.
    """
    for spec in specs:
        source = open_source(_expanded(_path_and_weight(spec)[0])[0])
        source.spec = spec
        check_columns([source], template)


def is_records(path: AnyPath) -> bool:
    """Return True for a path that only a reader of records opens."""
    return path.suffix.lower() in SUFFIXES or path.is_dir()


def open_source(path: AnyPath, otherwise: type[Source] | None = None) -> Source:
    """The records of one file or directory.

    Args:
        otherwise: the kind of a file whose name does not say it.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: an unknown kind of file, or a damaged one.
    """
    if path.is_dir():
        found = next((path / name for name in METADATA if (path / name).is_file()), None)
        if found is not None:
            return SUFFIXES[found.suffix](found)
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            return SavedDataset(path)
        raise ValueError(f"The folder {path} has no {METADATA[0]}; give {KINDS}.")
    kind = SUFFIXES.get(path.suffix.lower(), otherwise)
    if kind is None:
        raise ValueError(f"{path} is of no kind that is known; give {KINDS}.")
    if not path.exists():
        raise _nothing(str(path))
    return kind(path)


def check_columns(sources: Sequence[Source], template: str | None) -> None:
    """Look at the first source of each spec: say once which of its columns are not read.

    Raises:
        ValueError: no record has an image, and a column that is not read names images.
    """
    firsts = {source.spec: source for source in reversed(sources)}
    for spec, source in reversed(firsts.items()):
        sample = _sample(source)
        read = set().union(*(columns_read(record, template) for record in sample))
        if sample and not any(has_image(record) for record in sample):
            for record in sample:
                check_unread_images(record, columns_read(record, template), source.folder, source.name)
        columns = dict.fromkeys(source.columns or ())
        columns |= dict.fromkeys(name for record in sample for name in record if has(record, name))
        say_unread(spec or source.name, [name for name in columns if name and name not in read])


def has_image(record: Mapping[str, Any]) -> bool:
    """Return True if a record names an image in one of its columns, its messages or its content."""
    if any(has(record, name) for name in IMAGES):
        return True
    contents = [record.get("content")]
    if isinstance(record.get("messages"), list):
        messages = [message for message in record["messages"] if isinstance(message, dict)]
        if any(has(message, name) for message in messages for name in IMAGES):
            return True
        contents = [message.get("content") for message in messages]
    parts = [part for content in contents if isinstance(content, list) for part in content if isinstance(part, dict)]
    return any(part.get("type") not in (None, "text") or "image" in part for part in parts)


_said: set[str] = set()


def say_unread(name: str, columns: Sequence[str]) -> None:
    """Say once, on standard error, which columns of a source are not read."""
    if columns and name not in _said:
        _said.add(name)
        are = "column is" if len(columns) == 1 else "columns are"
        print(f"{name}: its {are} not read: {', '.join(columns)}.", file=sys.stderr)


def _sample(source: Source) -> list[dict[str, Any]]:
    """Records of a source, evenly spaced; those that cannot be read are left out, for whoever reads them to say."""
    sample = []
    for number in range(0, len(source), max(1, len(source) // SAMPLE)):
        try:
            sample.append(source[number])
        except (ValueError, OSError):
            continue
    return sample
