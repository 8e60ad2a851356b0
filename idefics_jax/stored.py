"""The tensors that a checkpoint directory stores, whatever its format, and whether a model can be made of them."""

from collections.abc import Iterable, Mapping
from typing import TypeAlias

import numpy as np

from idefics_jax import hf
from idefics_jax.config import IdeficsConfig
from idefics_jax.orbax_files import StackedEntry, find_arrays, is_orbax
from idefics_jax.paths import AnyPath
from idefics_jax.tensor_files import Entry, find_tensors

#: Tensors by Hugging Face's names, in their axes, not read yet.
Stored: TypeAlias = Mapping[str, Entry | StackedEntry]


def stored_tensors(directory: AnyPath, config: IdeficsConfig) -> Stored:
    """Every tensor of a directory: safetensors, `pytorch_model*.bin` or Orbax.

    Raises:
        FileNotFoundError: there are no weights, or a shard is missing.
        ValueError: a file is damaged.
    """
    return find_arrays(directory, config) if is_orbax(directory) else find_tensors(directory)


def matched(
    weights: Iterable[hf.Weight], tensors: Stored, config: IdeficsConfig, directory: AnyPath
) -> list[hf.Weight]:
    """The weights, under the names of these tensors, once every weight has its tensor and every tensor its weight.

    Raises:
        ValueError: a tensor is missing, unknown or mis-shaped.
    """
    weights = [_without_prefix(weight, tensors) for weight in weights]
    whole = any(weight.path.startswith("model/") for weight in weights)
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
    return weights


def _without_prefix(weight: hf.Weight, tensors: Stored) -> hf.Weight:
    """The weight under the names of a checkpoint that holds an `IdeficsModel` alone: without the leading "model."."""
    if any(name.startswith("model.") for name in tensors):
        return weight
    return weight._replace(names=np.vectorize(lambda name: name.removeprefix("model."), otypes=[object])(weight.names))
