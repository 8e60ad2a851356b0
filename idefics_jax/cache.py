"""What a decoder keeps of the tokens and images it has read, so that the next token costs one token's work."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from idefics_jax.sharding import constrain

KeyValue = tuple[Float[Array, "*layers b n s h"], Float[Array, "*layers b n s h"]]


class Cache(NamedTuple):
    """Keys and values, heads before slots. Listed models keep one pair of buffers per layer, stacked ones stack them.

    Attributes:
        self_attention: `(key, value)` of `[b, n, slots, h]` per group and layer; slots are written once, in order.
        cross_attention: `(key, value)` of `[b, n, images * patches, h]` per group, computed once from the images. The
            batch may be a whole fraction of that of the tokens: row `r` then sees the images of row `r // k`.
        valid: `[b, slots]` bool, slots that hold a real token (neither padding nor yet to be written).
        length: int32, slots written so far: the same for every row.
    """

    self_attention: Any
    cross_attention: Any
    valid: Bool[Array, "b slots"]
    length: Int[Array, ""]


def empty_self_attention(
    groups: int, layers: int, batch: int, heads: int, slots: int, head_dim: int, dtype: Any, stacked: bool
) -> Any:
    """Buffers for `groups x layers` layers in the form that the decoder's own layers have."""

    def buffer():
        shape = (groups, layers) if stacked else ()
        zeros = jnp.zeros((*shape, batch, heads, slots, head_dim), dtype)
        return constrain(zeros, *[None] * len(shape), "batch", "heads")

    if stacked:
        return buffer(), buffer()
    return tuple(tuple((buffer(), buffer()) for _ in range(layers)) for _ in range(groups))


def write(
    cache: KeyValue, key: Float[Array, "b n t h"], value: Float[Array, "b n t h"], slot: Int[Array, ""]
) -> KeyValue:
    """The layer's buffers with `t` new tokens in the slots from `slot` on; in place where the buffers are donated."""

    def update(buffer, new):
        return jax.lax.dynamic_update_slice_in_dim(buffer, new.astype(buffer.dtype), slot, axis=2)

    return update(cache[0], key), update(cache[1], value)
