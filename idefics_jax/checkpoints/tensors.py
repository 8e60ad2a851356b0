"""The tensors that a checkpoint directory stores, whatever its format, and whether a model can be made of them."""

from collections.abc import Iterable, Mapping
from typing import TypeAlias

import numpy as np

from idefics_jax.checkpoints import hf_names
from idefics_jax.checkpoints.orbax_io import StackedEntry, find_arrays, is_orbax
from idefics_jax.checkpoints.safetensors_io import DTYPES, Entry, find_tensors
from idefics_jax.config import IdeficsConfig
from idefics_jax.utils.paths import AnyPath

PREFIXES = ("module.", "base_model.model.")
#: Tensors by Hugging Face's names, in their axes, not read yet.
Stored: TypeAlias = Mapping[str, Entry | StackedEntry]


def stored_tensors(directory: AnyPath, config: IdeficsConfig) -> Stored:
    """Every tensor of a directory: safetensors, `pytorch_model*.bin` or Orbax.

    Raises:
        FileNotFoundError: there are no weights, or a shard is missing.
        ValueError: a file is damaged.
    """
    if is_orbax(directory):
        return find_arrays(directory, config)
    tensors = without_prefixes(find_tensors(directory))
    layers = max(config.num_hidden_layers, config.vision_config.num_hidden_layers)
    if layers > len(tensors):
        raise ValueError(
            f"Missing from {directory}: its config.json has {layers:,} layers, and its weights are {len(tensors):,} "
            "tensors; they do not belong together."
        )
    return tensors


def without_prefixes(tensors: dict[str, Entry]) -> dict[str, Entry]:
    """Take off what wrappers put before the names of all tensors: torch.compile, DataParallel and PEFT."""
    found = {name.replace("_orig_mod.", ""): entry for name, entry in tensors.items()}
    while prefix := next((p for p in PREFIXES if found and all(name.startswith(p) for name in found)), None):
        found = {name.removeprefix(prefix): entry for name, entry in found.items()}
    return found if len(found) == len(tensors) else tensors


def matched(
    weights: Iterable[hf_names.Weight], tensors: Stored, config: IdeficsConfig, directory: AnyPath
) -> list[hf_names.Weight]:
    """The weights, under the names of these tensors, once every weight has its tensor and every tensor its weight.

    Raises:
        ValueError: a tensor is missing, unknown or mis-shaped.
    """
    weights = [_without_prefix(weight, tensors) for weight in weights]
    whole = any(weight.path.startswith("model/") for weight in weights)
    wanted = {name: weight.shape for weight in weights for name in weight.names.flat}
    optional = () if whole and not config.tie_word_embeddings else ("lm_head.",)
    if lora := next((name for name in tensors if ".lora_" in name), None):
        raise ValueError(
            f"{directory} holds LoRA adapters, such as {lora}, that are not merged; merge them in PEFT by "
            "merge_and_unload(), save the result, and load that."
        )
    unknown = [n for n in tensors if n not in wanted and not hf_names.STRAY.search(n) and not n.startswith(optional)]
    unknown = [name for name in unknown if tensors[name].dtype in DTYPES.values()]  # whole numbers are buffers
    missing = [name for name in wanted if name not in tensors]
    for finding, names in (("Missing from", missing), ("Unknown in", unknown)):
        if names:
            raise ValueError(
                f"{finding} {directory}: {', '.join(sorted(names)[:5])}{', ...' if len(names) > 5 else ''} "
                f"({len(names)} tensors in all); its config.json and weights do not belong together."
            )
    for name, shape in wanted.items():
        if (dtype := tensors[name].dtype) not in DTYPES.values():
            known = ", ".join(str(dtype) for dtype in DTYPES.values())
            raise ValueError(f"{name} in {tensors[name].file} has dtype {dtype}; weights must be one of {known}.")
        if tensors[name].shape != shape:
            raise ValueError(
                f"{name} in {tensors[name].file} has shape {tensors[name].shape}; the config wants {shape}."
            )
    return weights


def _without_prefix(weight: hf_names.Weight, tensors: Stored) -> hf_names.Weight:
    """The weight under the names of a checkpoint that holds an `IdeficsModel` alone: without the leading "model."."""
    if any(name.startswith("model.") for name in tensors):
        return weight
    return weight._replace(names=np.vectorize(lambda name: name.removeprefix("model."), otypes=[object])(weight.names))
