"""Attention over any mask and cache, as it is written or by cuDNN. TPUs' kernels are in `kernels`."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from idefics_jax.kernels.cross_attention import MASKED
from idefics_jax.kernels.cudnn import cudnn_attention, fits_cudnn
from idefics_jax.nn.masks import causal_mask
from idefics_jax.parallel.mesh import constrain, spec


class Past(NamedTuple):
    """Cached keys and values of earlier tokens, attended to in place, never copied together with the new ones."""

    key: Float[Array, "b n h p"]
    value: Float[Array, "b n p h"]
    mask: Bool[Array, "b #t p"]


def attention_weights(
    query: Float[Array, "b t n h"],
    key: Float[Array, "b n s h"],
    mask: Bool[Array, "b #t s"] | None,
    past: Past | None = None,
) -> Float[Array, "b n t all"]:
    """Softmax over keys, the past's first, of scaled dot products, float32; `mask` is True where a query may look."""

    def scores(key: Float[Array, "b n s h"], mask: Bool[Array, "b #t s"] | None) -> Float[Array, "b n t s"]:
        products = jnp.einsum("btnh,bnsh->bnts", query, key, preferred_element_type=jnp.float32)
        products = products * query.shape[-1] ** -0.5
        return products if mask is None else jnp.where(mask[:, None], products, MASKED)

    parts = [scores(key, mask)] if past is None else [scores(past.key.swapaxes(2, 3), past.mask), scores(key, mask)]
    return jax.nn.softmax(jnp.concatenate(parts, axis=-1), axis=-1)


def attention(
    query: Float[Array, "b t n h"],
    key: Float[Array, "b n s h"],
    value: Float[Array, "b n s h"],
    mask: Bool[Array, "b #t s"] | None = None,
    past: Past | None = None,
    dropout: Callable[[Array], Array] | None = None,
    causal: bool = False,
) -> Float[Array, "b t n h"]:
    """Multi-head attention to `key` and `value`, and to the `past` where there is one.

    Args:
        dropout: of the weights.
        causal: no query sees a later key. A `mask` has to say so too; without one, nothing else is hidden.
    """

    def mean(weights: Float[Array, "b n t s"], value: Float[Array, "b n s h"]) -> Float[Array, "b t n h"]:
        return jnp.einsum("bnts,bnsh->btnh", weights, value, out_sharding=spec("batch", None, "heads", None))

    if dropout is None and fits_cudnn(query):
        if past is None:
            return cudnn_attention(query, key, value, mask, causal=causal)
        return cudnn_attention(query, *joined(past, key, value, causal_alone(query) if mask is None else mask))
    if mask is None and causal:
        mask = causal_alone(query)
    weights = attention_weights(query, key, mask, past)
    weights = (weights if dropout is None else dropout(weights)).astype(query.dtype)
    if past is None:
        return mean(weights, value)
    slots = past.value.shape[2]
    return mean(weights[..., :slots], past.value) + mean(weights[..., slots:], value)


def causal_alone(query: Float[Array, "b t n h"]) -> Bool[Array, "b t t"]:
    """The causal mask of rows in which nothing else is hidden."""
    return causal_mask(constrain(jnp.ones(query.shape[:2], bool), "batch"))


def joined(
    past: Past, key: Float[Array, "b n s h"], value: Float[Array, "b n s h"], mask: Bool[Array, "b t s"]
) -> tuple[Float[Array, "b n all h"], Float[Array, "b n all h"], Bool[Array, "b t all"]]:
    """Keys, values and mask of the past and of what is new as one, for kernels that take no two.

    The past's keys lie across and have to be copied for them anyway.
    """
    before = jnp.broadcast_to(past.mask, (*mask.shape[:2], past.mask.shape[2]))
    return (
        jnp.concatenate([past.key.swapaxes(2, 3), key], axis=2),
        jnp.concatenate([past.value, value], axis=2),
        jnp.concatenate([constrain(before, "batch"), constrain(mask, "batch")], axis=2),
    )
