"""The files that are trained on, on a disk or in an object store, opened by their kind: each a sequence of records with
random access."""

import glob
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from idefics_jax.paths import AnyPath, as_path

from ..data.sources import ArrayRecords, JsonLines, SavedDataset, Source, TarShard

METADATA = "metadata.jsonl"
OPENERS = 16  # threads that open the files of a glob: in an object store that is waiting for the most part
SUFFIXES = {".jsonl": JsonLines, ".tar": TarShard, ".array_record": ArrayRecords, ".arrayrecord": ArrayRecords}
KINDS = (
    f"a folder with {METADATA}, a .jsonl file, a WebDataset .tar, an .array_record file or a directory saved by "
    "Hugging Face datasets"
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
            opened = openers.map(_open, expanded)
        for found, source in zip(expanded, opened, strict=True):
            if not len(source):
                raise ValueError(f"{found} holds no records; leave it out.")
            source.mixture = None if weight is None else (spec, weight)
            sources.append(source)
    without = [source.name for source in sources if source.mixture is None]
    if 0 < len(without) < len(sources):
        raise ValueError(f"{without[0]} has no weight but others have; give every source one (PATH=0.3), or none.")
    return sources


def check_paths(specs: Sequence[str]) -> None:
    """Raises as `open_sources` where nothing is at a path, without reading any file."""
    for spec in specs:
        _expanded(_path_and_weight(spec)[0])


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


def _open(path: AnyPath) -> Source:
    if path.is_dir():
        if (path / METADATA).is_file():
            return JsonLines(path / METADATA)
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            return SavedDataset(path)
        raise ValueError(f"The folder {path} has no {METADATA}; give {KINDS}.")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} is of no kind that is known; give {KINDS}.")
    return SUFFIXES[path.suffix](path)
