"""Attention whose scores never reach memory: cuDNN's, on NVIDIA's GPUs."""

from functools import cache, partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from idefics_jax.sharding import per_shard, platform, spec


def fits_cudnn(query: Float[Array, "b t n h"], key: Float[Array, "b n s h"], masked: bool) -> bool:
    """Whether cuDNN can attend so, on the platform that is traced for: with 16 bits, and even lengths under a mask."""
    (_, tokens, _, head_dim), keys = query.shape, key.shape[2]
    return (
        platform() == "gpu"
        and query.dtype.itemsize == 2
        and head_dim <= 128
        and head_dim % 8 == 0
        and (not masked or tokens % 2 == keys % 2 == 0)
        and _has_tensor_cores()
    )


@cache
def _has_tensor_cores() -> bool:
    """Whether the GPUs are NVIDIA's since Ampere, which cuDNN's attention is made for."""
    gpu = jax.devices("gpu")[0]
    return "cuda" in gpu.client.platform_version and float(gpu.compute_capability) >= 8


def cudnn_attention(
    query: Float[Array, "b t n h"],
    key: Float[Array, "b n s h"],
    value: Float[Array, "b n s h"],
    mask: Bool[Array, "b #t s"] | None,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "b t n h"]:
    """As `attention.attention` has it, each device for its own rows and heads.

    Args:
        implementation: "xla": the same by JAX's own formula, on any machine, to test it.
    """
    heads, rows = spec("batch", None, "heads", None), spec("batch", None, None)
    inputs, layouts = [query, key.swapaxes(1, 2), value.swapaxes(1, 2)], [heads] * 3
    if mask is not None:
        inputs.append(jnp.broadcast_to(mask, (*query.shape[:2], key.shape[2])))
        layouts.append(rows)
    attend = per_shard(partial(_attend, implementation), tuple(layouts), heads, check_vma=False)
    return attend(*inputs)


def _attend(implementation, query, key, value, mask=None):
    mask = None if mask is None else mask[:, None]
    return jax.nn.dot_product_attention(query, key, value, mask=mask, implementation=implementation)
