"""Models from and to Hugging Face checkpoint directories."""

import json
import logging
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jaxtyping import Array
from safetensors import SafetensorError
from safetensors.numpy import save_file

from idefics_jax import hf
from idefics_jax.config import IdeficsConfig
from idefics_jax.hub import checkpoint_directory
from idefics_jax.progress import bytes_progress
from idefics_jax.sharding import on_mesh
from idefics_jax.tensor_files import INDEX, SINGLE, Entry, copy, find_tensors

READERS = 4  # threads that load weights, each one tensor at a time

logger = logging.getLogger(__name__)


class Pretrained(nnx.Module):
    """What every model class can do with checkpoints."""

    config: IdeficsConfig

    def __init__(self, config: IdeficsConfig, key: Array, *, stacked: bool = False):
        """Random weights, float32."""
        raise NotImplementedError

    @classmethod
    def from_config(
        cls,
        config: IdeficsConfig,
        key: Array,
        *,
        param_dtype: Any = jnp.float32,
        mesh: Mesh | None = None,
        stacked: bool = False,
    ) -> Self:
        """A model with random weights.

        Args:
            config: the architecture, and the dtype of computation.
            key: a `jax.random.key`.
            param_dtype: of the weights in memory.
            mesh: shard the weights over it (see `idefics_jax.make_mesh`); they are made in place, never gathered.
            stacked: one scanned layer instead of a list of layers: what training wants.
        """

        def make(key):
            return jax.tree.map(lambda x: x.astype(param_dtype), cls(config, key, stacked=stacked))

        with on_mesh(mesh):
            return jax.jit(make)(key)

    @classmethod
    def abstract(
        cls,
        config: IdeficsConfig,
        *,
        param_dtype: Any = jnp.float32,
        mesh: Mesh | AbstractMesh | None = None,
        stacked: bool = False,
    ) -> Self:
        """The model's shapes, dtypes and shardings, with nothing allocated: leaves are `jax.ShapeDtypeStruct`.

        With an abstract mesh this says how 80B lies on a pod, from a machine that has no device of it.
        """
        with on_mesh(mesh):
            shapes = jax.eval_shape(lambda: cls(config, jax.random.key(0), stacked=stacked))

        def leaf(x):
            sharding = None if mesh is None else NamedSharding(mesh, x.sharding.spec)
            return jax.ShapeDtypeStruct(x.shape, param_dtype, sharding=sharding)

        return jax.tree.map(leaf, shapes)

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike,
        *,
        dtype: Any = "auto",
        param_dtype: Any = None,
        mesh: Mesh | None = None,
        stacked: bool = False,
        progress: bool = False,
    ) -> Self:
        """Loads a Hugging Face checkpoint: a directory, or an id on the hub.

        Weights go tensor by tensor from memory-mapped files to the devices; host memory holds four at a time.

        Args:
            path: a directory with `config.json` and safetensors, or a hub id.
            dtype: of computation; "auto" is the checkpoint's own, with bfloat16 for float16.
            param_dtype: of the weights in memory; default: that of computation.
            mesh: shard the weights over it (see `idefics_jax.make_mesh`); default: one device.
            stacked: one scanned layer instead of a list of layers: what training wants.
            progress: show a progress bar.

        Raises:
            FileNotFoundError: there is no such checkpoint, or one of its files is missing.
            ValueError: a config value is not implemented; or a tensor is missing, unknown, mis-shaped or cut off.
        """
        directory = checkpoint_directory(path, ["*.json", "*.safetensors"])
        config = IdeficsConfig.from_pretrained(directory)
        config = replace(config, dtype=compute_dtype(config.dtype, dtype))
        model = cls.abstract(config, param_dtype=param_dtype or config.dtype, mesh=mesh, stacked=stacked)
        tensors = find_tensors(directory)
        weights = [_without_prefix(weight, tensors) for weight in hf.weights(model, config)]
        _check(weights, tensors, config, directory, whole=any(weight.path.startswith("model/") for weight in weights))
        total = sum(weight.leaf.size * weight.leaf.dtype.itemsize for weight in weights)
        bar = bytes_progress(f"Loading {directory.name or directory}", total, progress)
        with bar as advance, ThreadPoolExecutor(READERS) as readers:
            arrays = list(readers.map(lambda weight: _load(weight, tensors, advance), weights))
        return jax.tree.unflatten(jax.tree.structure(model), arrays)

    def save_pretrained(self, directory: str | os.PathLike, *, max_shard_size: int = 5 * 10**9) -> None:
        """Writes `config.json` and safetensors, sharded where need be, that `transformers` loads too.

        Args:
            directory: made if need be; its files appear, or replace older ones, once all are written.
            max_shard_size: bytes per file.

        Raises:
            OSError: the disk is full, or the directory cannot be written; an older checkpoint in it is as it was.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=directory) as temporary:
            try:
                written = _write(self, self.config, Path(temporary), max_shard_size)
            except (OSError, SafetensorError) as error:
                raise OSError(f"{directory} could not be written: {error}; nothing in it was changed.") from error
            for old in directory.glob("model*.safetensors*"):
                old.unlink()
            for file in written:
                (Path(temporary) / file).replace(directory / file)


def compute_dtype(checkpoint: str, asked: Any) -> str:
    """The name of the dtype to compute in, from the checkpoint's own and what the caller asked for.

    Raises:
        ValueError: it is not a floating dtype that a model runs in.
    """
    if asked is None or (isinstance(asked, str) and asked == "auto"):
        return "bfloat16" if checkpoint == "float16" else checkpoint
    name = jnp.dtype(asked).name
    if name not in ("bfloat16", "float16", "float32"):
        raise ValueError(f"A model computes in bfloat16, float32 or float16, not in {name}.")
    if name == "float16":
        logger.warning("IDEFICS 80B overflows in float16, and 9B may; bfloat16 costs the same and does not.")
    return name


def _without_prefix(weight: hf.Weight, tensors: dict[str, Entry]) -> hf.Weight:
    """The weight under the names of a checkpoint that holds an `IdeficsModel` alone: without the leading "model."."""
    if any(name.startswith("model.") for name in tensors):
        return weight
    return weight._replace(names=np.vectorize(lambda name: name.removeprefix("model."), otypes=[object])(weight.names))


def _check(
    weights: list[hf.Weight], tensors: dict[str, Entry], config: IdeficsConfig, directory: Path, whole: bool
) -> None:
    """Every weight has its tensor, every tensor its weight, and their shapes agree."""
    wanted = {name: weight.shape for weight in weights for name in weight.names.flat}
    optional = () if whole and not config.tie_word_embeddings else ("lm_head.",)
    unknown = [n for n in tensors if n not in wanted and not hf.STRAY.search(n) and not n.startswith(optional)]
    missing = [name for name in wanted if name not in tensors]
    for finding, names in (("Missing from", missing), ("Unknown in", unknown)):
        if names:
            raise ValueError(
                f"{finding} {directory}: {', '.join(sorted(names)[:5])}{', ...' if len(names) > 5 else ''} "
                f"({len(names)} tensors in all); its config.json and weights do not belong together."
            )
    for name, shape in wanted.items():
        if tensors[name].shape != shape:
            raise ValueError(
                f"{name} in {tensors[name].file} has shape {tensors[name].shape}; the config wants {shape}."
            )


def _load(weight: hf.Weight, tensors: dict[str, Entry], advance) -> Array:
    """One leaf on its devices, each reading only the slice that it holds."""
    leaf, layers = weight.leaf, weight.names.ndim

    def read(index: Any) -> np.ndarray:  # a slice per axis
        shape = [len(range(*part.indices(size))) for part, size in zip(index, leaf.shape, strict=True)]
        result = np.empty(shape, leaf.dtype)
        for layer, name in np.ndenumerate(np.asarray(weight.names[index[:layers]], object)):
            copy(weight.to_ours(tensors[name].read())[(*index[layers:], ...)], result[(*layer, ...)])
        return result

    here = leaf.sharding or jnp.zeros(()).sharding  # without a mesh, where new arrays go
    array = jax.make_array_from_callback(leaf.shape, here, read)
    advance(leaf.size * leaf.dtype.itemsize)
    return array


def _write(model: Any, config: IdeficsConfig, directory: Path, max_shard_size: int) -> list[str]:
    """Writes a model's files and returns their names."""
    shards = _plan(model, config, max_shard_size)
    total, weight_map = 0, {}
    for number, shard in enumerate(shards, 1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {
            name: np.ascontiguousarray(weight.to_theirs(np.asarray(weight.leaf[at]))) for name, weight, at in shard
        }
        save_file(tensors, directory / file, metadata={"format": "pt"})
        total += sum(tensor.nbytes for tensor in tensors.values())
        weight_map |= dict.fromkeys(tensors, file)
    written = [*dict.fromkeys(weight_map.values()), "config.json"]
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        written.append(INDEX)
    architecture = {"architectures": [type(model).__name__], "dtype": str(jax.tree.leaves(model)[0].dtype)}
    (directory / "config.json").write_text(json.dumps(config.to_dict() | architecture, indent=2) + "\n")
    return written


def _plan(model: Any, config: IdeficsConfig, max_shard_size: int) -> list[list[tuple[str, hf.Weight, tuple[int, ...]]]]:
    """Tensors by file: each one's name, weight, and place among the leaf's layers."""
    shards, size = [[]], 0
    for name, weight, at in _tensors(model, config):
        tensor = int(np.prod(weight.shape)) * weight.leaf.dtype.itemsize
        if shards[-1] and size + tensor > max_shard_size:
            shards.append([])
            size = 0
        shards[-1].append((name, weight, at))
        size += tensor
    return shards


def _tensors(model: Any, config: IdeficsConfig) -> Iterator[tuple[str, hf.Weight, tuple[int, ...]]]:
    prefix = "" if hasattr(model, "model") else "model."
    for weight in hf.weights(model, config):
        for at, name in np.ndenumerate(weight.names):
            yield str(name).removeprefix(prefix), weight, at
