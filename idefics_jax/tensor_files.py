"""Tensors in a directory of safetensors files, by name, as memory-mapped arrays."""

import json
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


class Entry(NamedTuple):
    """Where a tensor lies: its file, dtype, shape, and first byte."""

    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    def read(self) -> np.ndarray:
        """The tensor as a read-only view of its file; only the pages that are looked at are read."""
        if 0 in self.shape:
            return np.zeros(self.shape, self.dtype)
        return np.memmap(self.file, self.dtype, mode="r", offset=self.offset, shape=self.shape)


def find_tensors(directory: Path) -> dict[str, Entry]:
    """Every tensor of a checkpoint directory, from the files' headers alone.

    Raises:
        FileNotFoundError: there are no safetensors, or a shard that the index names is missing.
        ValueError: a file is cut off or damaged, or the index does not agree with its files.
    """
    index = directory / INDEX
    if index.exists():
        return _from_index(directory, index)
    if (directory / SINGLE).exists():
        return read_header(directory / SINGLE)
    if any(directory.glob("pytorch_model*.bin")):
        raise FileNotFoundError(
            f"{directory} has only pytorch_model*.bin weights; convert them to safetensors first "
            "(load and save them once with transformers)."
        )
    raise FileNotFoundError(f"{directory} has neither {SINGLE} nor {INDEX}; is it a checkpoint?")


def _from_index(directory: Path, index: Path) -> dict[str, Entry]:
    try:
        files: dict[str, str] = json.loads(index.read_text())["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{index} is not a safetensors index ({error}); download it again.") from error
    tensors: dict[str, Entry] = {}
    for file in sorted(set(files.values())):
        if Path(file).name != file:
            raise ValueError(f"{index} names {file}, outside its own directory; that is not a checkpoint to trust.")
        if not (directory / file).exists():
            raise FileNotFoundError(f"{directory / file}, which {INDEX} names, is missing; download it again.")
        for name, entry in read_header(directory / file).items():
            if name in tensors:
                raise ValueError(f"{name} is in both {tensors[name].file.name} and {file} of {directory}; remove one.")
            tensors[name] = entry
    for name, file in files.items():
        if name not in tensors or tensors[name].file.name != file:
            raise ValueError(f"{index} says that {name} is in {file}, and it is not; download both again.")
    return tensors


def read_header(file: Path) -> dict[str, Entry]:
    """The tensors of one safetensors file: 8 bytes of header length, a JSON header, then the data.

    Raises:
        ValueError: the file is cut off, or its header is damaged or claims more than the file holds.
    """
    size = file.stat().st_size
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(f"{file} is cut off or not a safetensors file; download it again.")
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            return {name: _entry(file, name, info, 8 + length, size) for name, info in header.items()}
        except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"The header of {file} is damaged ({error}); download it again.") from error


def _entry(file: Path, name: str, info: dict, data: int, size: int) -> Entry:
    if info["dtype"] not in DTYPES:
        raise ValueError(f"{name} in {file} has dtype {info['dtype']}; weights must be one of {', '.join(DTYPES)}.")
    dtype, shape, (start, end) = DTYPES[info["dtype"]], tuple(info["shape"]), info["data_offsets"]
    if end - start != dtype.itemsize * int(np.prod(shape, dtype=np.int64)) or start < 0:
        raise ValueError(f"The header of {file} is damaged: {name} of shape {shape} cannot be {end - start} bytes.")
    if data + end > size:
        raise ValueError(f"{file} is cut off: {name} ends at byte {data + end:,} of {size:,}; download it again.")
    return Entry(file, dtype, shape, data + start)


def copy(source: np.ndarray, target: np.ndarray) -> None:
    """Fills `target`, which lies in C order, with a view of a file's tensor that may be transposed.

    NumPy copies a transposed matrix along the rows of the copy, each element from another cache line; in strips of 16
    columns, whole lines are read, which is about five times as fast.
    """
    if source.ndim == 3 and source.strides[1] == source.shape[2] * source.strides[2]:  # heads apart, as in one matrix
        source, target = (x.reshape(len(x), -1) for x in (source, target))
    if source.flags.c_contiguous:
        target[...] = source
    else:
        for start in range(0, source.shape[-1], 16):
            target[..., start : start + 16] = source[..., start : start + 16]
