"""The tensors of PyTorch's zip archives (`pytorch_model*.bin`), found without PyTorch and without executing pickles.

The archive holds each storage uncompressed, so a tensor is a range of the file. What says which is a pickle, and
unpickling calls whatever functions the pickle names: here only the few below, which build descriptions.
"""

import io
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from idefics_jax.checkpoints.safetensors_io import Entry, check_pointer
from idefics_jax.utils.paths import AnyPath, open_regular

LOCAL_HEADER = 30  # bytes of a zip member's own header, before its name
DTYPES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
}

# Of buffers, which are not loaded.
OTHERS = {"LongStorage": np.dtype(np.int64), "IntStorage": np.dtype(np.int32), "ShortStorage": np.dtype(np.int16)}
OTHERS |= {"CharStorage": np.dtype(np.int8), "ByteStorage": np.dtype(np.uint8), "BoolStorage": np.dtype(np.bool_)}
MAX_PICKLE = 2**26  # bytes; that of 80 billion parameters has less than a million


class _Storage(NamedTuple):
    kind: str  # PyTorch's class, which names the dtype
    key: str


class _Tensor(NamedTuple):
    storage: _Storage
    start: int  # in elements, as the strides are
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch_header(file: AnyPath) -> dict[str, Entry]:
    """The tensors of one file that `torch.save` wrote.

    Raises:
        ValueError: the file is cut off or damaged, or holds anything but tensors of floating-point numbers.
    """
    try:
        with open_regular(file) as stream:
            check_pointer(file, stream.read(8))
            with zipfile.ZipFile(stream) as archive:  # pyright: ignore[reportArgumentType]  # a file of bytes
                return _read(file, stream, archive)
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{file} is cut off, or not in the format of PyTorch 1.6 and later ({error}); download it again."
        ) from error


def _read(file: AnyPath, stream: Any, archive: zipfile.ZipFile) -> dict[str, Entry]:
    pickles = [member for member in archive.namelist() if member.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError(f"{file} holds {len(pickles)} pickles instead of one; it is not a PyTorch checkpoint.")
    root = pickles[0].removesuffix("data.pkl")
    try:
        return _tensors(file, stream, archive, pickles[0], root)
    except _Refused as error:
        raise ValueError(str(error)) from error


def _tensors(file: AnyPath, stream: Any, archive: zipfile.ZipFile, name: str, root: str) -> dict[str, Entry]:
    if f"{root}byteorder" in archive.namelist() and _member(file, archive, f"{root}byteorder") != b"little":
        raise _Refused(f"{file} was written on a big-endian machine; save it again on another.")
    try:
        content = _member(file, archive, name)
        _check_memo(file, content)
        state = _Unpickler(file, content).load()
    except _Refused:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"The pickle in {file} is damaged ({error}); download it again.") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, _Tensor) for tensor in state.values()):
        raise ValueError(f"{file} is not a dictionary of tensors; save the model's state_dict() alone.")
    return {str(name): _entry(file, name, tensor, stream, archive, root) for name, tensor in state.items()}


def _member(file: AnyPath, archive: zipfile.ZipFile, name: str) -> bytes:
    """Read a small member of the archive."""
    member = archive.getinfo(name)
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
        raise _Refused(
            f"{name} in {file} is compressed or encrypted, which torch.save never does; save the file again."
        )
    if member.file_size > MAX_PICKLE:
        raise _Refused(
            f"{name} in {file} has {member.file_size:,} bytes; no checkpoint's has more than {MAX_PICKLE:,}."
        )
    return archive.read(name)


def _check_memo(file: AnyPath, content: bytes) -> None:
    """Refuse a pickle that numbers what it keeps higher than it can have things: each number would take memory."""
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= (argument or 0) <= len(content):
            raise _Refused(f"The pickle in {file} is damaged: it keeps thing number {argument:,}; download it again.")


class _Refused(Exception):
    """A pickle that asks for what it does not get."""


class _Unpickler(pickle.Unpickler):
    """Knows the names that a dictionary of tensors needs, and refuses every other before anything is called."""

    def __init__(self, file: AnyPath, content: bytes):
        super().__init__(io.BytesIO(content))
        self.file = file

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _rebuild_parameter
        if module == "torch" and name.endswith("Storage"):
            return name
        raise _Refused(
            f"{self.file} asks to run {module}.{name}, which no checkpoint needs. Do not trust the file: nothing of it "
            "was run."
        )

    def persistent_load(self, pid: Any) -> _Storage:
        _, kind, key, *_ = pid
        return _Storage(str(kind), str(key))


def _rebuild_tensor(storage: _Storage, start: int, shape: tuple, strides: tuple, *_: Any) -> _Tensor:
    numbers = (start, *shape, *strides)
    if not isinstance(storage, _Storage) or len(shape) != len(strides):
        raise ValueError("a tensor has no storage, or not as many strides as axes")
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("a tensor has sizes that are no whole numbers from 0 on")
    return _Tensor(storage, start, tuple(shape), tuple(strides))


def _rebuild_parameter(tensor: _Tensor, *_: Any) -> _Tensor:
    return tensor


def _entry(file: AnyPath, name: Any, tensor: _Tensor, stream: Any, archive: zipfile.ZipFile, root: str) -> Entry:
    dtype = DTYPES.get(tensor.storage.kind) or OTHERS.get(tensor.storage.kind)
    if dtype is None:
        kind = tensor.storage.kind.removesuffix("Storage")
        raise ValueError(f"{name} in {file} has dtype {kind}; weights must be floating-point numbers.")
    try:
        member = archive.getinfo(f"{root}data/{tensor.storage.key}")
    except KeyError as error:
        raise ValueError(f"{file} has no data for {name}; download it again.") from error
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} in {file} is compressed, which torch.save never does; save the file again.")
    # The member's own header can be longer than what the archive's directory says of it: PyTorch aligns data with it.
    stream.seek(member.header_offset)
    header = stream.read(LOCAL_HEADER)
    lengths = [int.from_bytes(header[at : at + 2], "little") for at in (26, 28)]  # of its name and its padding
    offset = member.header_offset + LOCAL_HEADER + sum(lengths) + tensor.start * dtype.itemsize
    strides = tuple(stride * dtype.itemsize for stride in tensor.strides)
    entry = Entry(file, dtype, tensor.shape, offset, strides)
    end = tensor.start * dtype.itemsize + entry.extent
    if min((tensor.start, *strides)) < 0 or end > member.file_size or offset + entry.extent > file.stat().st_size:
        raise ValueError(f"{file} is cut off: {name} needs {end:,} bytes and {member.file_size:,} are there.")
    return entry
