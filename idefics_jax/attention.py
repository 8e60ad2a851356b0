"""Attention behind one interface; the only file that would name platforms."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from idefics_jax.sharding import spec

#: Scores of masked pairs. Finite, so that a row which sees nothing gives finite numbers (its caller zeroes them).
MASKED = -1e30


def attention_weights(
    query: Float[Array, "b t n h"], key: Float[Array, "b n s h"], mask: Bool[Array, "b #t s"] | None
) -> Float[Array, "b n t s"]:
    """Softmax over keys of scaled dot products, float32; `mask` is True where a query may look."""
    scores = jnp.einsum("btnh,bnsh->bnts", query, key, preferred_element_type=jnp.float32)
    scores = scores * query.shape[-1] ** -0.5
    if mask is not None:
        scores = jnp.where(mask[:, None], scores, MASKED)
    return jax.nn.softmax(scores, axis=-1)


def attention(
    query: Float[Array, "b t n h"],
    key: Float[Array, "b n s h"],
    value: Float[Array, "b n s h"],
    mask: Bool[Array, "b #t s"] | None = None,
) -> Float[Array, "b t n h"]:
    """Multi-head attention. Keys and values have their heads before their tokens, as caches keep them."""
    weights = attention_weights(query, key, mask).astype(query.dtype)
    return jnp.einsum("bnts,bnsh->btnh", weights, value, out_sharding=spec("batch", None, "heads", None))
