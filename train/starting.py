"""What a run starts from: the mesh, and the model's weights made or read where they live."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from idefics_jax import IdeficsConfig, IdeficsForVisionText2Text, make_mesh
from idefics_jax.nn.lora import add_adapters
from idefics_jax.parallel.memory import bytes_of, check_memory, program_needs
from idefics_jax.parallel.mesh import shapes_on

from .config import TrainConfig
from .optimizer import make_optimizer
from .step import init_state
from .trainable import Template, split, trains


def mesh_of(config: TrainConfig, devices: Sequence[Any] | None = None) -> Mesh | None:
    """The mesh that the options describe, over all devices, or those given; None for a single one that is here.

    Raises:
        ValueError: it does not use the devices that there are.
    """
    sizes = config.mesh
    mesh = make_mesh(sizes.data, sizes.fsdp, sizes.tensor, None if devices is None else list(devices))
    # A mesh alone says that a program is for a device which is not here.
    return None if mesh.size == 1 and devices is None else mesh


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


def check_fits(config: TrainConfig, model_config: IdeficsConfig, mesh: Mesh | None) -> None:
    """Refuses a run whose weights, optimizer state and gradients cannot fit, before weights are read or made.

    Raises:
        ValueError: they cannot, or the mesh does not fit the model.
    """
    _, params, frozen = abstract(config, model_config, mesh)
    optimizer = make_optimizer(config.optimizer, config.steps)
    state = shapes_on(mesh, lambda params: init_state(params, optimizer, config.ema is not None), params)
    trained = bytes_of(params, mesh)
    needs = {
        "weights that train": trained,
        "frozen weights": bytes_of(frozen, mesh),
        "the optimizer's state": bytes_of(state, mesh) - trained,
        "gradients": 0 if config.optimizer.clip is None else trained,  # their norm needs all of them at once
    }
    check_memory(f"--trainable {config.trainable}", needs, mesh, mends=_fewer_weights(config))


def check_step_fits(config: TrainConfig, program: jax.stages.Compiled, mesh: Mesh | None) -> None:
    """Refuse a compiled step whose temporary values cannot fit beside the weights, state and batch that are there.

    Raises:
        ValueError: they cannot.
    """
    rows = config.batch_size // config.accumulation
    helpful = {
        "work on fewer rows at a time (--accumulation)": rows > (1 if mesh is None else mesh.size),
        "give --remat full": config.remat != "full",
    }
    mends = [*(mend for mend, helps in helpful.items() if helps), *_fewer_weights(config)]
    check_memory("A training step", program_needs(program, mesh), mesh, mends=mends)


def _fewer_weights(config: TrainConfig) -> list[str]:
    return [] if config.trainable == "lora" else ["give --trainable lora"]


def load(config: TrainConfig, model_config: IdeficsConfig, mesh: Mesh | None) -> tuple[Template, Any, Any]:
    """The model's template, its weights that train and its frozen ones, each made or read where it lives."""
    dtype, (key, adapters_key) = _dtypes(config, model_config), jax.random.split(jax.random.key(config.seed))
    if config.random is not None:
        model = IdeficsForVisionText2Text.from_config(model_config, key, param_dtype=dtype, mesh=mesh, stacked=True)
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
        model = _adapted(config, model, adapters_key)
    return _halves(config, model_config, model)


def abstract(config: TrainConfig, model_config: IdeficsConfig, mesh: Mesh | None) -> tuple[Template, Any, Any]:
    """As `load`, with shapes, dtypes and shardings in place of weights: nothing is read or made."""
    dtype = _dtypes(config, model_config)
    model = IdeficsForVisionText2Text.abstract(model_config, param_dtype=dtype, mesh=mesh, stacked=True)
    if config.trainable == "lora":
        model = shapes_on(mesh, lambda model: _adapted(config, model, jax.random.key(0)), model)
    return _halves(config, model_config, model)


def _dtypes(config: TrainConfig, model_config: IdeficsConfig) -> Callable[[str], Any]:
    """The dtype of each weight: float32 where it trains."""
    chosen = trains(config.trainable, model_config)
    return lambda path: jnp.float32 if chosen(path) else jnp.dtype(config.frozen_dtype)


def _adapted(config: TrainConfig, model: IdeficsForVisionText2Text, key: jax.Array) -> IdeficsForVisionText2Text:
    lora = config.lora
    return add_adapters(model, key, targets=lora.targets, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout)


def _halves(
    config: TrainConfig, model_config: IdeficsConfig, model: IdeficsForVisionText2Text
) -> tuple[Template, Any, Any]:
    template, params, frozen = split(model, trains(config.trainable, model_config))
    if not params:
        raise ValueError(f"--trainable {config.trainable} finds nothing to train in this model.")
    return template, params, frozen
