"""What a run starts from: the mesh, and the model's weights made or read where they live."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from idefics_jax import IdeficsConfig, IdeficsForVisionText2Text, make_mesh
from idefics_jax.lora import add_adapters
from train.config import TrainConfig
from train.trainable import Template, split, trains


def mesh_of(config: TrainConfig) -> Mesh | None:
    """The mesh that the options describe, over all devices; None for a single device.

    Raises:
        ValueError: it does not use the devices that there are.
    """
    sizes = config.mesh
    mesh = make_mesh(sizes.data, sizes.fsdp, sizes.tensor)
    return mesh if mesh.size > 1 else None


def model_config(config: TrainConfig) -> IdeficsConfig:
    """The architecture, with the run's dtype and dropout.

    Raises:
        ValueError: no model was named.
    """
    if config.random is not None:
        name = config.random.replace("-", "_")
        found = getattr(IdeficsConfig, name if name == "tiny" else f"idefics_{name}")()
    elif config.model is not None:
        found = IdeficsConfig.from_pretrained(config.model)
    else:
        raise ValueError("Say where to start: --model with a checkpoint, or --random with an architecture.")
    dropout = found.dropout if config.dropout is None else config.dropout
    return replace(found, dtype=config.dtype, dropout=dropout)


def load(config: TrainConfig, model_config: IdeficsConfig, mesh: Mesh | None) -> tuple[Template, Any, Any]:
    """The model's template, its weights that train and its frozen ones, each made or read where it lives."""
    chosen = trains(config.trainable, model_config)
    keys = jax.random.split(jax.random.key(config.seed))

    def dtype(path: str) -> Any:
        return jnp.float32 if chosen(path) else jnp.dtype(config.frozen_dtype)

    if config.random is not None:
        model = IdeficsForVisionText2Text.from_config(model_config, keys[0], param_dtype=dtype, mesh=mesh, stacked=True)
    else:
        assert config.model is not None
        model = IdeficsForVisionText2Text.from_pretrained(
            config.model,
            dtype=config.dtype,
            param_dtype=dtype,
            mesh=mesh,
            stacked=True,
            progress=True,
        )
    if config.trainable == "lora":
        lora = config.lora
        model = add_adapters(
            model, keys[1], targets=lora.targets, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout
        )
    template, params, frozen = split(model, chosen)
    if not params:
        raise ValueError(f"--trainable {config.trainable} finds nothing to train in this model.")
    return template, params, frozen
