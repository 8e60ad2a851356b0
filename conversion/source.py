"""A checkpoint that was opened: its configuration, its tensors and which of our weights they make."""

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from idefics_jax import IdeficsConfig, IdeficsForVisionText2Text, IdeficsModel
from idefics_jax.checkpoints import hf_names
from idefics_jax.checkpoints.orbax_io import is_orbax
from idefics_jax.checkpoints.safetensors_io import copy
from idefics_jax.checkpoints.tensors import Stored, matched, stored_tensors
from idefics_jax.utils.hub import checkpoint_directory
from idefics_jax.utils.json_files import read_object
from idefics_jax.utils.paths import AnyPath, PathLike

Kind = tuple[np.dtype, tuple[int, ...]]  # of a tensor: its dtype, and its shape in Hugging Face's axes


class Checkpoint(NamedTuple):
    """An opened checkpoint.

    Attributes:
        directory: where it is.
        config: the architecture.
        values: of `config.json`, as they stand there.
        tensors: those that a model is made of, by Hugging Face's names, in the order in which they are stored.
        left_out: names of further ones, which hold nothing to load.
        weights: of our model with stacked layers.
    """

    directory: AnyPath
    config: IdeficsConfig
    values: dict[str, Any]
    tensors: Stored
    left_out: list[str]
    weights: list[hf_names.Weight]

    @property
    def format(self) -> str:
        """ "orbax", "safetensors" or "bin"."""
        if is_orbax(self.directory):
            return "orbax"
        return next(iter(self.tensors.values())).file.suffix.removeprefix(".")

    @property
    def kinds(self) -> dict[str, Kind]:
        """Dtype and shape of each tensor."""
        return {name: (tensor.dtype, tensor.shape) for name, tensor in self.tensors.items()}

    @property
    def places(self) -> dict[str, tuple[hf_names.Weight, tuple[int, ...]]]:
        """The weight that each tensor is a layer of, and which."""
        return {str(name): (weight, at) for weight in self.weights for at, name in np.ndenumerate(weight.names)}


def open_checkpoint(path: PathLike) -> Checkpoint:
    """Opens a checkpoint, reading the headers of its files alone.

    Args:
        path: a directory, a URL or a hub id.

    Raises:
        FileNotFoundError: there is no checkpoint, or a file of it is missing.
        ValueError: a file is damaged, or config and tensors do not belong together.
    """
    directory = checkpoint_directory(path, weights=True)
    config = IdeficsConfig.from_pretrained(directory)
    values = read_object(directory / "config.json")
    stored = stored_tensors(directory, config)
    wanted = matched(weights_of(model_class(values), config), stored, config, directory)
    names = {str(name) for weight in wanted for name in weight.names.flat}
    tensors = {name: tensor for name, tensor in stored.items() if name in names}
    return Checkpoint(directory, config, values, tensors, sorted(stored.keys() - names), wanted)


@cache
def weights_of(
    kind: type[IdeficsModel] | type[IdeficsForVisionText2Text], config: IdeficsConfig
) -> list[hf_names.Weight]:
    """The weights of our model with stacked layers."""
    return list(hf_names.weights(kind.abstract(config, stacked=True), config))


def model_class(values: Mapping[str, Any]) -> type[IdeficsModel] | type[IdeficsForVisionText2Text]:
    """Our class for what a `config.json` says the checkpoint holds."""
    return IdeficsModel if "IdeficsModel" in (values.get("architectures") or ()) else IdeficsForVisionText2Text


def cast(tensor: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The tensor in a dtype, rounded to the nearest even as PyTorch does; what is too large becomes infinite."""
    with np.errstate(over="ignore"):
        return tensor.astype(dtype, copy=False)


def contiguous(tensor: np.ndarray) -> np.ndarray:
    """The tensor in C order, itself if it is so already."""
    if tensor.flags.c_contiguous:
        return tensor
    result = np.empty(tensor.shape, tensor.dtype)
    copy(tensor, result)
    return result
