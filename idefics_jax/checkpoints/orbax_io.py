"""Weights in an Orbax directory: every layer of a kind in one array, as training holds them.

`params/` is an Orbax checkpoint like any other, so Orbax restores it onto any mesh: arrays in Zarr's format, all in one
OCDBT database, under the names of our modules. This module reads and writes the arrays in pieces, which Orbax's own
interface cannot: a weight of one layer at a time.
"""

import json
import re
import threading
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import tensorstore as ts

from idefics_jax.checkpoints import hf_names
from idefics_jax.checkpoints.safetensors_io import copy, nbytes
from idefics_jax.config import IdeficsConfig
from idefics_jax.utils.paths import AnyPath, kvstore, read_json

PARAMS = "params"  # the parameters' folder in a checkpoint's directory
METADATA = "_METADATA"
PROCESS = "ocdbt.process_"  # and a number: Orbax's name for the databases that together make the one in `params`
CHUNK_BYTES = 2**25  # a process restoring a part of an array reads whole chunks

_DICT_KEY = 2  # Orbax's number for the key of a dictionary
_CONTEXT = ts.Context({"cache_pool#ocdbt": {"total_bytes_limit": 10**8}})


class StackedEntry(NamedTuple):
    """A layer's weight: the array that holds it, the weight's path, and its place among the layers."""

    file: AnyPath
    array: Any
    weight: hf_names.Weight
    layer: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the stored elements."""
        return self.array.dtype.numpy_dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """In Hugging Face's axes."""
        return self.weight.shape

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's elements."""
        return nbytes(self.dtype, self.shape)

    def read(self) -> np.ndarray:
        """The tensor in Hugging Face's axes."""
        return self.weight.to_theirs(self.read_ours(self.weight, ()))

    def read_ours(self, weight: hf_names.Weight, index: tuple) -> np.ndarray:
        """A slice of it in our axes; `weight` is not looked at, since it lies as we have it."""
        return np.asarray(self.array[(*self.layer, *index)].read().result())


def is_orbax(directory: AnyPath) -> bool:
    """Return True if the directory has weights in Orbax's form."""
    return (directory / PARAMS / METADATA).exists()


def find_arrays(directory: AnyPath, config: IdeficsConfig) -> dict[str, StackedEntry]:
    """Every weight of an Orbax directory by its Hugging Face name, from the arrays' headers alone.

    Raises:
        ValueError: the description of the arrays is damaged, an array is missing, or is none of the config's.
    """
    params = directory / PARAMS
    try:
        metadata = read_json(params / METADATA)
        driver = "zarr3" if metadata.get("use_zarr3") else "zarr"
        keys = [[str(part["key"]) for part in leaf["key_metadata"]] for leaf in metadata["tree_metadata"].values()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{params / METADATA} does not describe arrays ({error}); the checkpoint is damaged."
        ) from error
    database, table = _database(params), hf_names.rules(config)
    opening = {
        "/".join(parts): ts.open(
            {
                "driver": driver,
                "kvstore": {**database, "path": f"{'.'.join(parts)}/"},
                "fill_missing_data_reads": False,
            },
            context=_CONTEXT,
            read=True,
        )
        for parts in keys
    }
    entries: dict[str, StackedEntry] = {}
    for path, future in opening.items():
        try:
            array = future.result()
            _check_chunks(array)
            weight = hf_names.weight_at(path, array, config, table)
        except KeyError as error:
            raise ValueError(f"Unknown in {params}: {path}; its config.json is not of this model.") from error
        except (ValueError, OSError) as error:
            raise ValueError(f"{path} in {params} is missing or damaged: {one_line(error)}.") from error
        for layer, name in np.ndenumerate(weight.names):
            entries[str(name)] = StackedEntry(params, array, weight, layer)
    if not any(path.startswith("model/") for path in opening):  # an `IdeficsModel` alone
        entries = {name.removeprefix("model."): entry for name, entry in entries.items()}
    return dict(sorted(entries.items(), key=lambda item: hf_names.by_number(item[0])))


def _check_chunks(array: Any) -> None:
    """Refuse chunks that are larger than their array: memory is taken for a whole chunk, whatever part is read.

    Raises:
        ValueError: they are.
    """
    shape, chunk = array.shape, array.chunk_layout.read_chunk.shape
    if any(size > most for size, most in zip(chunk, shape, strict=True)):
        raise ValueError(f"its shape is {tuple(shape)}, and its chunks are {tuple(chunk)}")


class ArrayWriter:
    """Writes a part of the arrays, layer by layer, into a database of its own; `merge` makes one of them all.

    Args:
        params: the folder, on a disk or in an object store.
        weights: of the stacked model; each leaf's dtype is that of the array.
        number: of the database.
    """

    def __init__(self, params: AnyPath, weights: Iterable[hf_names.Weight], number: int):
        self.params = params
        self.weights = list(weights)
        self.database = _database(params / f"{PROCESS}{number}", write=True)
        self.arrays: dict[str, Any] = {}
        self.lock = threading.Lock()

    def open(self, path: str) -> Any:
        """The array of the weights at `path`, made if it is not there; all are opened together, in one transaction."""
        with self.lock:
            if not self.arrays:
                opening = {weight.path: self._open(weight) for weight in self.weights}
                self.arrays = {path: array.result() for path, array in opening.items()}
        return self.arrays[path]

    def _open(self, weight: hf_names.Weight) -> Any:
        leaf = weight.leaf
        spec = {
            "driver": "zarr",
            "kvstore": {**self.database, "path": f"{weight.path.replace('/', '.')}/"},
            "metadata": {
                "shape": leaf.shape,
                "chunks": chunk_shape(leaf.shape, weight.names.ndim, leaf.dtype.itemsize),
                "compressor": None,  # trained weights look random: zstd would save a tenth, and halve the speed
            },
            "dtype": leaf.dtype.name,
            "store_data_equal_to_fill_value": True,
            "fill_missing_data_reads": False,
        }
        return ts.open(spec, context=_CONTEXT, create=True, open=True)

    def write(self, path: str, layer: tuple[int, ...], values: np.ndarray, buffer: np.ndarray) -> list[Any]:
        """Starts to write one layer's weight, given in our axes; `result()` of each future waits until it is stored.

        Args:
            buffer: `CHUNK_BYTES` bytes to put chunks into, one after the other, while they are hot in the cache; it
                can be used again at once.
        """
        array, writing = self.open(path)[layer], []
        rows = chunk_shape(values.shape, 0, values.dtype.itemsize)[:1]  # of a chunk; a single number has none
        for start in range(0, len(values), *rows) if rows else (0,):
            index = tuple(slice(start, start + size) for size in rows)
            part = values[(*index, ...)]
            chunk = np.ndarray(part.shape, part.dtype, buffer)
            copy(part, chunk)
            stored = array[index].write(chunk)
            stored.copy.result()
            writing.append(stored)
        return writing

    def read(self, path: str, layer: tuple[int, ...]) -> np.ndarray:
        """Read the layer's weight.

        Raises:
            ValueError: nothing was.
        """
        return np.asarray(self.open(path)[layer].read().result())


def merge(params: AnyPath, weights: Iterable[hf_names.Weight], databases: int) -> None:
    """Makes one database of those that `ArrayWriter`s wrote, moving no data, and describes it to Orbax."""
    everything = ts.KvStore.open(_database(params, write=True), context=_CONTEXT).result()
    transaction = ts.Transaction(atomic=True)
    for number in range(databases):
        part = ts.KvStore.open(_database(params / f"{PROCESS}{number}"), context=_CONTEXT).result()
        part.experimental_copy_range_to(everything.with_transaction(transaction)).result()
    transaction.commit_async().result()
    tree = {}
    for weight in weights:
        parts = weight.path.split("/")
        chunk = chunk_shape(weight.leaf.shape, weight.names.ndim, weight.leaf.dtype.itemsize)
        tree[str(tuple(parts))] = {
            "key_metadata": [{"key": part, "key_type": _DICT_KEY} for part in parts],
            "value_metadata": {"value_type": "jax.Array", "skip_deserialize": False, "write_shape": chunk},
        }
    metadata = {
        "tree_metadata": tree,
        "use_ocdbt": True,
        "use_zarr3": False,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }
    handler = "orbax.checkpoint._src.handlers.standard_checkpoint_handler.StandardCheckpointHandler"
    (params / "_CHECKPOINT_METADATA").write_text(json.dumps({"item_handlers": handler, "custom_metadata": {}}))
    (params / METADATA).write_text(json.dumps(metadata))


def chunk_shape(shape: tuple[int, ...], layers: int, itemsize: int) -> list[int]:
    """Return a chunk of one layer and, of a large weight, of a part of its first axis, which meshes split."""
    chunk = [1] * layers + list(shape[layers:])
    while len(chunk) > layers and int(np.prod(chunk)) * itemsize > CHUNK_BYTES and chunk[layers] % 2 == 0:
        chunk[layers] //= 2
    return chunk


def one_line(error: BaseException) -> str:
    """The first words of TensorStore's long messages."""
    return re.split(r" \[(?:source locations|tensorstore_spec)", str(error).splitlines()[0])[0].rstrip(".")


def _database(directory: AnyPath, write: bool = False) -> dict[str, Any]:
    """The OCDBT database in a directory, with the settings that Orbax writes with."""
    base = kvstore(directory)
    spec: dict[str, Any] = {"driver": "ocdbt", "base": base, "cache_pool": "cache_pool#ocdbt"}
    if base["driver"] == "file":  # data files are new, and need no renaming to appear whole; the manifest does
        spec |= {"base": {**base, "file_io_locking": {"mode": "non_atomic"}}, "manifest": base}
    if write:
        config = {"max_inline_value_bytes": 1024, "max_decoded_node_bytes": 10**8, "manifest_kind": "single"}
        spec |= {"config": config, "assume_config": True}
    return spec
