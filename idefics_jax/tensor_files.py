"""Tensors in a directory of safetensors or `pytorch_model*.bin` files, by name, each read only when it is asked for."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from idefics_jax.paths import AnyPath, read_bytes

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
TORCH_INDEX = "pytorch_model.bin.index.json"
TORCH_SINGLE = "pytorch_model.bin"
MAX_HEADER = 10**8  # bytes, as in the safetensors package
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


class Entry(NamedTuple):
    """Where a tensor lies: its file, dtype, shape, first byte, and distances of neighbours (default: C order)."""

    file: AnyPath
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int
    strides: tuple[int, ...] | None = None  # in bytes

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's elements."""
        return nbytes(self.dtype, self.shape)

    @property
    def extent(self) -> int:
        """Bytes of the file from the tensor's first element to its last."""
        if 0 in self.shape or self.strides is None:
            return self.nbytes
        steps = zip(self.shape, self.strides, strict=True)
        return self.dtype.itemsize + sum((size - 1) * stride for size, stride in steps)

    def read(self) -> np.ndarray:
        """The tensor, read-only: of a local file a view, of which only the pages that are looked at are read."""
        if 0 in self.shape:
            return np.zeros(self.shape, self.dtype)
        if isinstance(self.file, Path):
            data = np.memmap(self.file, np.uint8, mode="r", offset=self.offset, shape=self.extent)
        else:
            data = np.frombuffer(read_bytes(self.file, self.offset, self.extent), np.uint8)
        return np.ndarray(self.shape, self.dtype, data, strides=self.strides)

    def read_ours(self, weight: Any, index: tuple) -> np.ndarray:
        """A slice, in our axes, of the tensor as one layer of an `hf.Weight`."""
        return weight.to_ours(self.read())[(*index, ...)]


def nbytes(dtype: np.dtype, shape: tuple[int, ...]) -> int:
    """Bytes of the elements of a tensor."""
    return dtype.itemsize * int(np.prod(shape, dtype=np.int64))


def find_tensors(directory: AnyPath) -> dict[str, Entry]:
    """Every tensor of a checkpoint directory, from the files' headers alone; safetensors where there are both kinds.

    Raises:
        FileNotFoundError: there are no weights, or a shard that the index names is missing.
        ValueError: a file is cut off or damaged, or the index does not agree with its files.
    """
    from idefics_jax.torch_files import read_torch_header

    for index, single, read in (
        (INDEX, SINGLE, read_header),
        (TORCH_INDEX, TORCH_SINGLE, read_torch_header),
    ):
        if (directory / index).exists():
            return _from_index(directory, directory / index, read)
        if (directory / single).exists():
            return read(directory / single)
    raise FileNotFoundError(
        f"{directory} has neither {SINGLE} nor {INDEX}, nor {TORCH_SINGLE} or its index; is it a checkpoint?"
    )


def _from_index(directory: AnyPath, index: AnyPath, read: Callable[[AnyPath], dict[str, Entry]]) -> dict[str, Entry]:
    try:
        files: dict[str, str] = json.loads(index.read_text())["weight_map"]
        shards = sorted(set(files.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not an index of weights ({error}); download it again.") from error
    tensors: dict[str, Entry] = {}
    for file in shards:
        if PurePath(file).name != file:
            raise ValueError(f"{index} names {file}, outside its own directory; that is not a checkpoint to trust.")
        if not (directory / file).exists():
            raise FileNotFoundError(f"{directory / file}, which {index.name} names, is missing; download it again.")
        for name, entry in read(directory / file).items():
            if name in tensors:
                raise ValueError(f"{name} is in both {tensors[name].file.name} and {file} of {directory}; remove one.")
            tensors[name] = entry
    for name, file in files.items():
        if name not in tensors or tensors[name].file.name != file:
            raise ValueError(f"{index} says that {name} is in {file}, and it is not; download both again.")
    return tensors


def read_header(file: AnyPath) -> dict[str, Entry]:
    """The tensors of one safetensors file: 8 bytes of header length, a JSON header, then the data.

    Raises:
        ValueError: the file is cut off, or its header is damaged or claims more than the file holds.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER):
            raise ValueError(f"{file} is cut off or not a safetensors file; download it again.")
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            return {name: _entry(file, name, info, 8 + length, size) for name, info in header.items()}
        except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"The header of {file} is damaged ({error}); download it again.") from error


def _entry(file: AnyPath, name: str, info: dict, data: int, size: int) -> Entry:
    if info["dtype"] not in DTYPES:
        raise ValueError(f"{name} in {file} has dtype {info['dtype']}; weights must be one of {', '.join(DTYPES)}.")
    dtype, shape, (start, end) = DTYPES[info["dtype"]], tuple(info["shape"]), info["data_offsets"]
    if end - start != nbytes(dtype, shape) or start < 0:
        raise ValueError(f"The header of {file} is damaged: {name} of shape {shape} cannot be {end - start} bytes.")
    if data + end > size:
        raise ValueError(f"{file} is cut off: {name} ends at byte {data + end:,} of {size:,}; download it again.")
    return Entry(file, dtype, shape, data + start)


def write_tensors(
    file: AnyPath, kinds: dict[str, tuple[np.dtype, tuple[int, ...]]], tensors: Iterable[np.ndarray]
) -> None:
    """Writes one safetensors file, a tensor at a time, so that one at a time need be in memory.

    Args:
        file: replaced if there is one.
        kinds: each tensor's dtype and shape, by name, in the order of the file.
        tensors: their values, in the same order.
    """
    with file.open("wb") as stream:
        stream.write(make_header(kinds))
        for tensor in tensors:
            stream.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)


def make_header(kinds: dict[str, tuple[np.dtype, tuple[int, ...]]]) -> bytes:
    """What a safetensors file begins with, given the dtype and shape of each tensor that follows."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in kinds.items():
        start, end = end, end + nbytes(dtype, shape)
        header[name] = {"dtype": names[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the data to 8 bytes
    return len(text).to_bytes(8, "little") + text


def shard_files(count: int) -> list[str]:
    """The names of a checkpoint's safetensors files."""
    return [SINGLE] if count == 1 else [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]


def write_index(directory: AnyPath, files: dict[str, dict[str, tuple[np.dtype, tuple[int, ...]]]]) -> None:
    """Write the index of several files, given each one's tensors as `write_tensors` takes them; of one, nothing."""
    if len(files) == 1:
        return
    kinds = [kind for tensors in files.values() for kind in tensors.values()]
    total = sum(nbytes(dtype, shape) for dtype, shape in kinds)
    weight_map = {name: file for file, tensors in files.items() for name in tensors}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def batches(items: list[Any], sizes: list[int], limit: int) -> list[list[Any]]:
    """Neighbouring items together, as many as stay within `limit` of the sizes' sum; a larger one alone."""
    result, total = [[]], 0
    for item, size in zip(items, sizes, strict=True):
        if result[-1] and total + size > limit:
            result.append([])
            total = 0
        result[-1].append(item)
        total += size
    return result


def copy(source: np.ndarray, target: np.ndarray) -> None:
    """Fills `target`, which lies in C order, with a view of a file's tensor that may be transposed.

    NumPy copies a transposed matrix along the rows of the copy, each element from another cache line; in strips of 8
    columns, whole lines are read and stay cached, which is about five times as fast.
    """
    if source.ndim == 3 and source.strides[1] == source.shape[2] * source.strides[2]:  # heads apart, as in one matrix
        source, target = (x.reshape(len(x), -1) for x in (source, target))
    if source.dtype == target.dtype:  # NumPy moves its own numbers faster than bfloat16's, and without Python's lock
        source, target = (x.view(f"u{x.dtype.itemsize}") for x in (source, target))
    if source.flags.c_contiguous:
        target[...] = source
    else:
        for start in range(0, source.shape[-1], 8):
            target[..., start : start + 8] = source[..., start : start + 8]
