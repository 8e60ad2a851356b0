"""What `torch.save` writes, without PyTorch: a zip of a pickle, spelt out opcode by opcode, and the storages."""

import io
import pickle
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np

STORAGES = {
    np.dtype(np.float64): "DoubleStorage",
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype(np.int64): "LongStorage",
}


def text(value: str) -> bytes:
    """The opcode for a string."""
    content = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(content)) + content


def numbers(values: tuple[int, ...]) -> bytes:
    """The opcodes for a tuple of integers."""
    return pickle.MARK + b"".join(pickle.BININT + struct.pack("<i", value) for value in values) + pickle.TUPLE


def state_pickle(tensors: dict[str, np.ndarray]) -> bytes:
    """The pickle of an OrderedDict of tensors; tensor number N is storage "N"."""
    body = io.BytesIO()
    body.write(
        pickle.PROTO + b"\x02" + pickle.GLOBAL + b"collections\nOrderedDict\n" + pickle.EMPTY_TUPLE + pickle.REDUCE
    )
    body.write(pickle.MARK)
    for number, (name, tensor) in enumerate(tensors.items()):
        body.write(text(name) + pickle.GLOBAL + b"torch._utils\n_rebuild_tensor_v2\n" + pickle.MARK)
        body.write(pickle.MARK + text("storage") + pickle.GLOBAL + f"torch\n{STORAGES[tensor.dtype]}\n".encode())
        body.write(text(str(number)) + text("cpu") + pickle.BININT + struct.pack("<i", tensor.size) + pickle.TUPLE)
        body.write(pickle.BINPERSID + pickle.BININT + struct.pack("<i", 0) + numbers(tensor.shape))
        strides = tuple(stride // tensor.itemsize for stride in tensor.strides)
        body.write(numbers(strides) + pickle.NEWFALSE)
        body.write(pickle.GLOBAL + b"collections\nOrderedDict\n" + pickle.EMPTY_TUPLE + pickle.REDUCE)
        body.write(pickle.TUPLE + pickle.REDUCE)
    body.write(pickle.SETITEMS + pickle.STOP)
    return body.getvalue()


def save_archive(file: Path, tensors: dict[str, np.ndarray], *, content: bytes | None = None) -> None:
    """Writes the archive; `content` is put in the place of the pickle."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", state_pickle(tensors) if content is None else content)
        archive.writestr("archive/byteorder", "little")
        for number, tensor in enumerate(tensors.values()):
            archive.writestr(f"archive/data/{number}", tensor.tobytes())
        archive.writestr("archive/version", "3\n")
