"""Low-rank adapters (Hu et al. 2021): beside frozen linear maps while they train, inside them afterwards."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from idefics_jax.nn.layers import Linear, Lora, constant, parameter
from idefics_jax.nn.stack import submodules
from idefics_jax.parallel.mesh import on_mesh_of


def add_adapters(model: Any, key: Array, *, targets: str, rank: int, alpha: float, dropout: float = 0.0) -> Any:
    """The model with an adapter at every linear map whose path matches; it computes the same as before.

    Args:
        targets: a regular expression to be found in paths like `model/decoder/groups/layers/attention/q`.
        rank: of the adapters.
        alpha: their output is multiplied by `alpha / rank`.
        dropout: share of their input that training zeroes.

    Raises:
        ValueError: no linear map matches.
    """

    def add(model):
        model = jax.tree.map(lambda leaf: leaf, model)
        found = [
            (module, layers)
            for path, module, layers in submodules(model)
            if isinstance(module, Linear) and re.search(targets, path)
        ]
        if not found:
            raise ValueError(
                f"No linear map's path matches {targets!r}; one is model/decoder/groups/layers/attention/q."
            )
        for number, (linear, layers) in enumerate(found):
            shape, none = linear.kernel.shape[len(layers) :], (None,) * len(layers)
            inputs, outputs = shape[: linear.contracted], shape[linear.contracted :]
            axes, bound = linear.axes, 1 / math.sqrt(math.prod(inputs))  # PEFT's: Kaiming's uniform with a = sqrt(5)
            a = parameter(
                (*layers, *inputs, rank),
                (*none, *axes[: linear.contracted], None),
                lambda shape, out_sharding, number=number, bound=bound: jax.random.uniform(
                    jax.random.fold_in(key, number), shape, minval=-bound, maxval=bound, out_sharding=out_sharding
                ),
            )
            b = parameter((*layers, rank, *outputs), (*none, None, *axes[linear.contracted :]), constant(0.0))
            linear.lora = Lora(a, b, alpha / rank, dropout)
        return model

    with on_mesh_of(model):
        return jax.jit(add)(model)


def merge_adapters(model: Any) -> Any:
    """The model with plain weights that compute what it and its adapters do, in the weights' dtypes."""

    def merge(model):
        model = jax.tree.map(lambda leaf: leaf, model)
        for _, linear, layers in submodules(model):
            if isinstance(linear, Linear) and linear.lora is not None:
                product, lora = lambda a, b: jnp.tensordot(a, b, 1), linear.lora
                for _ in layers:
                    product = jax.vmap(product)
                kernel = linear.kernel[...]
                added = lora.scale * product(lora.a[...].astype(jnp.float32), lora.b[...].astype(jnp.float32))
                linear.kernel[...] = (kernel.astype(jnp.float32) + added).astype(kernel.dtype)
                linear.lora = None
        return model

    with on_mesh_of(model):
        return jax.jit(merge)(model)
