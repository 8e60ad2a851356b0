"""Models from and to checkpoint directories."""

import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from inspect import signature
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array

from idefics_jax.checkpoints import hf_names
from idefics_jax.checkpoints.orbax_io import PARAMS, is_orbax
from idefics_jax.checkpoints.safetensors_io import INDEX, batches, copy, shard_files, write_index, write_tensors
from idefics_jax.checkpoints.tensors import Stored, matched, stored_tensors
from idefics_jax.config import IdeficsConfig
from idefics_jax.generation_config import FILE as GENERATION_FILE
from idefics_jax.generation_config import GenerationConfig
from idefics_jax.parallel.hardware import drawing_options
from idefics_jax.parallel.memory import check_memory, weight_needs
from idefics_jax.parallel.mesh import as_mesh, check_mesh, mesh_of, on_mesh, shapes_on
from idefics_jax.utils.checks import LOADING, refuse, shown
from idefics_jax.utils.commit import LAST, committed
from idefics_jax.utils.compilation_cache import keep_compiled_programs
from idefics_jax.utils.hub import checkpoint_directory
from idefics_jax.utils.paths import AnyPath, PathLike, open_regular
from idefics_jax.utils.progress import bytes_progress

_ANYWAY = ("low_cpu_mem_usage", "use_safetensors")  # arguments of transformers' that ask for what is always done
READERS = 4  # threads that load weights, each one tensor at a time
SHARD = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
MANIFEST = "manifest.json"  # checksums that `conversion` writes beside the weights

logger = logging.getLogger(__name__)


class Beside:
    """State of a model that is no part of its programs: copies share it, and none of it is compiled in.

    To JAX all of them are equal, so that no change of a setting compiles anything again.

    Attributes:
        generation_config: settings of `generate`.
        shapes: sizes that `generate` has compiled programs for (`generation.shapes`).
    """

    def __init__(self, config: IdeficsConfig):
        self.generation_config = GenerationConfig.from_model_config(config)
        self.shapes: dict[Any, Any] = {}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Beside)

    def __hash__(self) -> int:
        return 0


class Pretrained(nnx.Module):
    """Base class of models: random weights, loading and saving."""

    config: IdeficsConfig
    _beside: Beside

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
        mesh: Mesh | str | None = None,
        stacked: bool = False,
    ) -> Self:
        """A model with random weights.

        Args:
            config: the architecture, and the dtype of computation.
            key: a `jax.random.key`.
            param_dtype: of the weights in memory; or a function that says it for a weight's path, such as
                `model/decoder/groups/layers/attention/q/kernel`.
            mesh: shard the weights over it (see `idefics_jax.make_mesh`), or its sizes, such as "tensor=2"; they are
                made in place, never gathered.
            stacked: one scanned layer instead of a list of layers: what training wants.

        Raises:
            ValueError: the mesh does not fit the model, or its weights do not fit the memory.
        """
        keep_compiled_programs()
        mesh = as_mesh(mesh)
        check_mesh(mesh, config)
        with on_mesh(mesh):
            traced = jax.jit(_maker(cls, config, param_dtype, stacked)).trace(key)
            check_memory("The model", weight_needs(traced.out_info, mesh), mesh)
            return traced.lower().compile(compiler_options=drawing_options())(key)

    @classmethod
    def abstract(
        cls,
        config: IdeficsConfig,
        *,
        param_dtype: Any = jnp.float32,
        mesh: Mesh | AbstractMesh | str | None = None,
        stacked: bool = False,
    ) -> Self:
        """The model's shapes, dtypes and shardings, with nothing allocated: leaves are `jax.ShapeDtypeStruct`.

        With an abstract mesh this says how 80B lies on a pod, from a machine that has no device of it.

        Raises:
            ValueError: the mesh does not fit the model.
        """
        mesh = as_mesh(mesh)
        check_mesh(mesh, config)
        make = _maker(cls, config, param_dtype, stacked)
        return shapes_on(mesh, lambda: make(jax.random.key(0)))  # no key is made: JAX may not be set up yet

    @classmethod
    def from_pretrained(
        cls,
        path: PathLike,
        *,
        dtype: Any = "auto",
        param_dtype: Any = None,
        mesh: Mesh | str | None = None,
        stacked: bool = False,
        progress: bool = False,
        needs: Callable[[Self], Mapping[str, int]] | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        torch_dtype: Any = None,
        generation_config: GenerationConfig | None = None,
        **unknown: Any,
    ) -> Self:
        """Loads a checkpoint: a directory, its `gs://` or `s3://` URL, or an id on the hub.

        Weights go tensor by tensor from memory-mapped files to the devices; host memory holds four at a time.

        Args:
            path: a directory with `config.json` and safetensors, `pytorch_model*.bin` files, or the Orbax directory
                that `python -m conversion convert` writes; or a hub id.
            dtype: of computation; "auto" is the checkpoint's own, with bfloat16 for float16.
            param_dtype: of the weights in memory, or a function that says it for a weight's path; default: that of
                computation.
            mesh: shard the weights over it (see `idefics_jax.make_mesh`), or its sizes, such as "tensor=2"; default:
                one device.
            stacked: one scanned layer instead of a list of layers: what training wants.
            progress: show a progress bar.
            needs: bytes by purpose that work after loading takes beside the weights, from the model's shapes: a model
                that would not fit with them is not loaded.
            revision, cache_dir, token, local_files_only: the hub's (`utils.hub`).
            torch_dtype: older name of `dtype`.
            generation_config: settings of `generate`; default: the checkpoint's `generation_config.json`.

        Raises:
            FileNotFoundError: there is no such checkpoint, or one of its files is missing.
            ValueError: a config value is not implemented; a tensor is missing, unknown, mis-shaped or cut off; the mesh
                does not fit the model; or the weights do not fit the memory.
        """
        hub = {"revision": revision, "cache_dir": cache_dir, "token": token, "local_files_only": local_files_only}
        unknown = {name: value for name, value in unknown.items() if name not in _ANYWAY}
        refuse("from_pretrained", unknown, signature(cls.from_pretrained).parameters, LOADING)
        keep_compiled_programs()
        mesh, dtype = as_mesh(mesh), dtype if torch_dtype is None else torch_dtype
        config = IdeficsConfig.from_pretrained(checkpoint_directory(path, **hub))
        config = replace(config, dtype=compute_dtype(config.dtype, dtype))
        model = cls.abstract(config, param_dtype=param_dtype or config.dtype, mesh=mesh, stacked=stacked)
        after = {} if needs is None else needs(model)
        check_memory(str(path), weight_needs(model, mesh) | dict(after), mesh, config.dtype)
        directory = checkpoint_directory(path, weights=True, **hub)
        tensors = stored_tensors(directory, config)
        weights = matched(hf_names.weights(model, config), tensors, config, directory)
        total = sum(weight.leaf.size * weight.leaf.dtype.itemsize for weight in weights)
        bar = bytes_progress(f"Loading {directory.name or directory}", total, progress)
        with bar as advance, ThreadPoolExecutor(READERS) as readers:
            arrays = list(readers.map(lambda weight: _load(weight, tensors, advance), weights))
        loaded = jax.tree.unflatten(jax.tree.structure(model), arrays)
        loaded.generation_config = generation_config or GenerationConfig.from_pretrained(directory, config)
        return loaded

    @property
    def generation_config(self) -> GenerationConfig:
        """Settings of `generate` where a call gives none; can be changed and replaced."""
        return self._beside.generation_config

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "generation_config":  # not compiled, so no part of the pytree
            self._beside.generation_config = value
        else:
            super().__setattr__(name, value)

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(self))
        mesh = mesh_of(self)
        where = "one device" if mesh is None else f"a mesh of {dict(mesh.shape)}"
        return f"{type(self).__name__}({count:,} parameters, computing in {self.config.dtype} on {where})"

    __str__ = __repr__

    def eval(self, **attributes: Any) -> Self:
        """The model itself: nothing in it differs between training and inference."""
        return self

    def train(self, **attributes: Any) -> Self:
        """The model itself: nothing in it differs between training and inference."""
        return self

    @property
    def device(self) -> Any:
        """The device that the weights are on.

        Raises:
            ValueError: they are on several.
        """
        devices = _devices(self)
        if len(devices) > 1:
            raise ValueError(f"The model is spread over {len(devices)} devices, not on one.")
        return devices[0]

    def to(self, *targets: Any, **unknown: Any) -> Self:
        """The model itself, where it already is what is asked for: a device such as "cpu" or "cuda", or a dtype.

        Raises:
            ValueError: it is not; what to do instead.
        """
        for target in (*targets, *unknown.values()):
            if not _is_already(self, target):
                raise ValueError(
                    f"A model stays where it was loaded, and as it was; .to({shown(target)}) is not possible: pass "
                    "dtype= and mesh= to from_pretrained, or load it under jax.default_device(...)."
                )
        return self

    def save_pretrained(self, directory: PathLike, *, max_shard_size: int = 5 * 10**9) -> None:
        """Writes `config.json` and safetensors, sharded where need be, that `transformers` loads too.

        Args:
            directory: is made where it is missing. The files replace those of an older checkpoint together, whatever
                moment the process is killed at; other files stay. At a URL older files are removed first, and
                `config.json`, without which nothing loads them, is written last.
            max_shard_size: bytes per file.

        Raises:
            OSError: the disk is full, or the directory cannot be written; an older checkpoint in it is as it was.
            ValueError: the URL's kind is unknown.
        """
        if jax.process_index() > 0:  # of several processes one writes, and all give their parts
            for _, weight, at in _tensors(self, self.config):
                _whole(weight, at)
            return
        with committed(directory, older_checkpoint) as folder:
            _write(self, self.config, folder, max_shard_size)


def save_checkpoint(directory: PathLike, model: Pretrained, processor: Any) -> None:
    """Write a model and its processor, which appear together, as `Pretrained.save_pretrained` describes.

    Raises:
        OSError, ValueError: as `Pretrained.save_pretrained`.
    """
    if jax.process_index() > 0:
        model.save_pretrained(directory)
        return
    with committed(directory, older_checkpoint) as folder:
        processor.save_pretrained(folder)
        model.save_pretrained(folder)


def older_checkpoint(directory: AnyPath) -> Iterator[str]:
    """Name the files of a checkpoint that a newer one in its directory makes obsolete."""
    yield LAST
    for file in directory.glob("model*.safetensors*"):
        if file.name == INDEX or SHARD.fullmatch(file.name):
            yield file.name
    if is_orbax(directory):
        yield PARAMS
    if (manifest := directory / MANIFEST).is_file():
        with open_regular(manifest) as file:
            if b'"written_by": "idefics-jax' in file.read(2**12):  # near its beginning
                yield MANIFEST


def compute_dtype(checkpoint: str, asked: Any) -> str:
    """The name of the dtype to compute in, from the checkpoint's own and what the caller asked for.

    Raises:
        ValueError: it is not a floating dtype that a model runs in.
    """
    if asked is None or (isinstance(asked, str) and asked == "auto"):
        return "bfloat16" if checkpoint == "float16" else checkpoint
    if type(asked).__module__ == "torch":
        asked = str(asked).removeprefix("torch.")
    try:
        name = jnp.dtype(asked).name
    except TypeError:
        raise ValueError(f"dtype is {shown(asked)}; it must be bfloat16, float32 or float16.") from None
    if name not in ("bfloat16", "float16", "float32"):
        raise ValueError(f"A model computes in bfloat16, float32 or float16, not in {name}.")
    if name == "float16":
        logger.warning("IDEFICS 80B overflows in float16, and 9B may; bfloat16 costs the same and does not.")
    return name


def _devices(model: Any) -> list[Any]:
    leaf = jax.tree.leaves(model)[0]
    if isinstance(leaf, jax.ShapeDtypeStruct):
        raise ValueError("The model is abstract, made of shapes, and on no device.")
    return sorted(leaf.sharding.device_set, key=lambda device: device.id)


def _is_already(model: Any, target: Any) -> bool:
    """Return True if the model is on the device, or computes in the dtype, that `target` names."""
    if isinstance(target, jax.Device):
        return _devices(model) == [target]
    text = str(target).removeprefix("torch.")
    kind = text.partition(":")[0]
    platform = _devices(model)[0].platform
    if kind in ("cpu", "cuda", "gpu", "tpu"):
        return platform == ("gpu" if kind == "cuda" else kind)
    try:
        return jnp.dtype(target if not isinstance(target, str) and text == str(target) else text).name == str(
            model.config.dtype
        )
    except TypeError:
        return False


def _maker(cls: Any, config: IdeficsConfig, param_dtype: Any, stacked: bool) -> Callable[[Array], Any]:
    """From a key, a model with random weights in their dtypes; by path where `param_dtype` is a function."""
    by_path = isinstance(param_dtype, Callable) and not isinstance(param_dtype, type)
    dtype: Any = param_dtype if by_path else lambda path: param_dtype

    def cast(path: Any, x: Array) -> Array:
        return x.astype(dtype(hf_names.path_of(path)))

    return lambda key: jax.tree_util.tree_map_with_path(cast, cls(config, key, stacked=stacked))


def _load(weight: hf_names.Weight, tensors: Stored, advance) -> Array:
    """Load a leaf onto its devices, each of which reads only the slice that it holds."""
    leaf, layers = weight.leaf, weight.names.ndim

    def read(index: Any) -> np.ndarray:  # a slice per axis
        shape = [len(range(*part.indices(size))) for part, size in zip(index, leaf.shape, strict=True)]
        result = np.empty(shape, leaf.dtype)
        for layer, name in np.ndenumerate(np.asarray(weight.names[index[:layers]], object)):
            copy(tensors[name].read_ours(weight, index[layers:]), result[(*layer, ...)])
        return result

    here = leaf.sharding or jnp.zeros(()).sharding  # without a mesh, where new arrays go
    array = jax.make_array_from_callback(leaf.shape, here, read)
    advance(leaf.size * leaf.dtype.itemsize)
    return array


def _write(model: Any, config: IdeficsConfig, directory: AnyPath, max_shard_size: int) -> None:
    """Write a model's files, `config.json` last."""
    shards = _plan(model, config, max_shard_size)
    files = {}
    for file, shard in zip(shard_files(len(shards)), shards, strict=True):
        kinds = {name: (weight.leaf.dtype, weight.shape) for name, weight, _ in shard}
        tensors = (weight.to_theirs(_whole(weight, at)) for _, weight, at in shard)
        write_tensors(directory / file, kinds, tensors)
        files[file] = kinds
    write_index(directory, files)
    settings = json.dumps(model.generation_config.to_dict(), indent=2)
    (directory / GENERATION_FILE).write_text(settings + "\n", encoding="utf-8")
    architecture = {"architectures": [type(model).__name__], "dtype": str(jax.tree.leaves(model)[0].dtype)}
    (directory / LAST).write_text(json.dumps(config.to_dict() | architecture, indent=2) + "\n")


def _whole(weight: hf_names.Weight, at: tuple[int, ...]) -> np.ndarray:
    """Return a layer's whole weight, wherever its parts are."""
    array = weight.leaf[at]
    if not array.is_fully_addressable:
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def _plan(
    model: Any, config: IdeficsConfig, max_shard_size: int
) -> list[list[tuple[str, hf_names.Weight, tuple[int, ...]]]]:
    """Tensors by file: each one's name, weight, and place among the leaf's layers."""
    tensors = list(_tensors(model, config))
    sizes = [int(np.prod(weight.shape)) * weight.leaf.dtype.itemsize for _, weight, _ in tensors]
    return batches(tensors, sizes, max_shard_size)


def _tensors(model: Any, config: IdeficsConfig) -> Iterator[tuple[str, hf_names.Weight, tuple[int, ...]]]:
    prefix = "" if hasattr(model, "model") else "model."
    for weight in hf_names.weights(model, config):
        for at, name in np.ndenumerate(weight.names):
            yield str(name).removeprefix(prefix), weight, at
