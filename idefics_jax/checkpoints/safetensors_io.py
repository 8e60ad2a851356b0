"""Tensors in a directory of safetensors or `pytorch_model*.bin` files, by name, each read only when it is asked for."""

import io
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from idefics_jax.utils.json_files import read_object, unique
from idefics_jax.utils.paths import AnyPath, open_regular, read_bytes

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
# Of buffers, which are not loaded.
OTHERS = {f"{sign}{bits}": np.dtype(f"{sign.lower()}{bits // 8}") for sign in "IU" for bits in (8, 16, 32, 64)}
OTHERS["BOOL"] = np.dtype(np.bool_)


class Entry(NamedTuple):
    """Location of a tensor: its file, dtype, shape, first byte and strides (default: C order)."""

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
    return dtype.itemsize * math.prod(shape)


def find_tensors(directory: AnyPath) -> dict[str, Entry]:
    """Every tensor of a checkpoint directory, from the files' headers alone; safetensors where there are both kinds.

    Raises:
        FileNotFoundError: there are no weights, or a shard that the index names is missing.
        ValueError: a file is cut off or damaged, or the index does not agree with its files.
    """
    from idefics_jax.checkpoints.torch_pickle import read_torch_header

    for single, index, read in (
        (SINGLE, INDEX, read_header),
        (TORCH_SINGLE, TORCH_INDEX, read_torch_header),
    ):
        if (directory / single).exists():  # before the index, as in transformers
            return read(directory / single)
        if (directory / index).exists():
            return _from_index(directory, directory / index, read)
    raise FileNotFoundError(
        f"{directory} has neither {SINGLE} nor {INDEX}, nor {TORCH_SINGLE} or its index; is it a checkpoint?"
    )


def _from_index(directory: AnyPath, index: AnyPath, read: Callable[[AnyPath], dict[str, Entry]]) -> dict[str, Entry]:
    files: Any = read_object(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise ValueError(f"{index} is not an index of weights: its weight_map names no files; download it again.")
    tensors: dict[str, Entry] = {}
    for file in sorted(set(files.values())):
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


def check_pointer(file: AnyPath, beginning: bytes) -> None:
    """Refuse a file that stands for another one.

    Raises:
        ValueError: it is a git-lfs pointer.
    """
    if beginning.startswith(b"version "):
        raise ValueError(f"{file} is a git-lfs pointer, not the weights; run `git lfs pull` there to have them.")


def read_header(file: AnyPath) -> dict[str, Entry]:
    """The tensors of one safetensors file: 8 bytes of header length, a JSON header, then the data.

    Raises:
        ValueError: the file is cut off, or its header is damaged or claims other bytes than the file holds.
    """
    with open_regular(file) as stream:
        size = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        beginning = stream.read(8)
        check_pointer(file, beginning)
        length = int.from_bytes(beginning, "little")
        if size < 8 or length > min(size - 8, MAX_HEADER):
            raise ValueError(f"{file} is cut off or not a safetensors file; download it again.")
        try:
            header = json.loads(stream.read(length), object_pairs_hook=unique)
            header.pop("__metadata__", None)
            entries = {name: _entry(file, name, info, 8 + length, size) for name, info in header.items()}
        except _HeaderError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"The header of {file} is damaged ({error}); download it again.") from error
    end = 8 + length
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if entry.offset != end:
            word = "overlaps the tensor before it" if entry.offset < end else "leaves bytes before it that nothing uses"
            raise ValueError(f"The header of {file} is damaged: {name} {word}; download it again.")
        end += entry.nbytes
    if end != size:
        raise ValueError(f"{file} has {size - end:,} bytes after its last tensor; download it again.")
    return entries


class _HeaderError(ValueError):
    """A header that is read, and whose tensors cannot be."""


def _entry(file: AnyPath, name: str, info: dict, data: int, size: int) -> Entry:
    dtype = DTYPES.get(info["dtype"]) or OTHERS.get(info["dtype"])
    shape, (start, end) = tuple(info["shape"]), info["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, start, end)):
        raise _HeaderError(f"The header of {file} is damaged: {name} has sizes that are no whole numbers from 0 on.")
    if dtype is None:  # one that no weight has: bytes
        dtype, shape = np.dtype("V1"), (end - start,)
    if end - start != nbytes(dtype, shape):
        raise _HeaderError(
            f"The header of {file} is damaged: {name} of shape {shape} cannot be {end - start} bytes."[:500]
        )
    if data + end > size:
        raise _HeaderError(f"{file} is cut off: {name} ends at byte {data + end:,} of {size:,}; download it again.")
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
    """Return the header of a safetensors file with tensors of these dtypes and shapes."""
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
