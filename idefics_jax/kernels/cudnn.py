"""Attention whose scores never reach memory: cuDNN's, on NVIDIA's GPUs."""

from functools import cache, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import get_abstract_mesh
from jaxtyping import Array, Bool, Float

from idefics_jax.parallel.hardware import GPUS
from idefics_jax.parallel.mesh import per_shard, platform, spec

#: With fewer queries, as in decoding, scores are fewer numbers than the keys and values that are read for them.
FEWEST_QUERIES = 16


def fits_cudnn(query: Float[Array, "b t n h"]) -> bool:
    """Return True if cuDNN attends to these queries on the platform that is traced for: several, of 16 bits."""
    _, tokens, _, head_dim = query.shape
    return (
        platform() == "gpu"
        and query.dtype.itemsize == 2
        and tokens >= FEWEST_QUERIES
        and head_dim <= 128
        and head_dim % 8 == 0
        and _have_tensor_cores()
    )


def _have_tensor_cores() -> bool:
    """Return True if the GPUs are NVIDIA's since Ampere, which cuDNN's attention is made for.

    Those that programs are compiled for without one are told by their kind; no client knows them.
    """
    device = get_abstract_mesh().abstract_device
    known = device is not None and any(gpu.kind == device.device_kind for gpu in GPUS.values())
    return known or _live_gpus_have_tensor_cores()


@cache
def _live_gpus_have_tensor_cores() -> bool:
    gpu = jax.devices("gpu")[0]
    return "cuda" in gpu.client.platform_version and float(gpu.compute_capability) >= 8


def keeps_result(primitive: Any, *_: Any, **__: Any) -> bool:
    """Rematerialization policy: keep what cuDNN gives, the softmax's sums included, so that it runs forward only once.

    The backward pass takes both results of JAX's own primitive, to which no name can be given from outside. Its name is
    private to JAX; `tests/gpu/test_programs.py` counts the calls (JAX 0.10.2 to 0.12).
    """
    return primitive.name.startswith("dot_product_attention_fwd")


def cudnn_attention(
    query: Float[Array, "b t n h"],
    key: Float[Array, "b n s h"],
    value: Float[Array, "b n s h"],
    mask: Bool[Array, "b #t s"] | None,
    *,
    causal: bool = False,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "b t n h"]:
    """Attention as `nn.attention.attention` computes it, on each device for its own rows and heads.

    Args:
        implementation: "xla" computes the same by JAX's own formula on any machine, for tests.
    """
    heads, rows = spec("batch", None, "heads", None), spec("batch", None, None)
    inputs, layouts = [query, key.swapaxes(1, 2), value.swapaxes(1, 2)], [heads] * 3
    if mask is not None:
        inputs.append(jnp.broadcast_to(mask, (*query.shape[:2], key.shape[2])))
        layouts.append(rows)
    attend = per_shard(partial(_attend, causal, implementation), tuple(layouts), heads, check_vma=False)
    return attend(*inputs)


def _attend(causal, implementation, query, key, value, mask=None):
    """In training JAX takes even lengths only, with a mask or without. Odd ones get a token that no real one sees."""
    (rows, tokens, _, _), keys = query.shape, key.shape[1]
    lengths = None
    if mask is not None:
        mask = _even(_even(mask, 1), 2)[:, None]
    elif keys % 2 and not causal:
        lengths = jnp.full(rows, keys, jnp.int32)
    y = jax.nn.dot_product_attention(
        _even(query, 1),
        _even(key, 1),
        _even(value, 1),
        mask=mask,
        is_causal=causal,
        key_value_seq_lengths=lengths,
        implementation=implementation,
    )
    return y[:, :tokens]


def _even(x: Array, axis: int) -> Array:
    """Append a zero to an axis of odd length."""
    return jnp.pad(x, [(0, size % 2 if each == axis else 0) for each, size in enumerate(x.shape)])
