"""What a decoder keeps of the tokens and images it has read, so that the next token costs one token's work."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from idefics_jax.sharding import constrain, spec

KeyValue = tuple[Float[Array, "b n s h"], Float[Array, "b n s h"]]
ImageKeyValue = tuple[Float[Array, "prompts n s h"], Float[Array, "prompts n s h"]]


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


def empty_buffers(piles: tuple[int, ...], shape: tuple[int, int, int, int], dtype: Any, stacked: bool) -> Any:
    """Zeros for the keys and values of as many layers as `piles` says, in the form that the decoder's own layers have.

    Args:
        piles: `(groups, layers)`, or `(groups,)` for cross-attention.
        shape: `[b, n, s, h]`, of each.
    """
    if piles and not stacked:
        return tuple(empty_buffers(piles[1:], shape, dtype, stacked) for _ in range(piles[0]))
    layout = (*[None] * len(piles), "batch", "heads", None, None)
    return tuple(constrain(jnp.zeros((*piles, *shape), dtype), *layout) for _ in ("key", "value"))


def write(
    cache: KeyValue, key: Float[Array, "b n t h"], value: Float[Array, "b n t h"], slot: Int[Array, ""]
) -> KeyValue:
    """The layer's buffers with `t` new tokens in the slots from `slot` on; in place where the buffers are donated."""

    def update(buffer, new):
        return jax.lax.dynamic_update_slice_in_dim(buffer, new.astype(buffer.dtype), slot, axis=2)

    return update(cache[0], key), update(cache[1], value)


def take_rows(cache: Cache, row: Int[Array, "r"]) -> Cache:
    """The cache whose row `r` is row `row[r]` of this one; the images' keys and values stay as they are."""
    return cache._replace(
        self_attention=jax.tree.map(lambda x: buffer_rows(x, row), cache.self_attention),
        valid=cache.valid.at[row].get(mode="promise_in_bounds", out_sharding=spec("batch", None)),
    )


def buffer_rows(x: Float[Array, "*layers b n s h"], row: Int[Array, "r"]) -> Float[Array, "*layers r n s h"]:
    """Rows of one of a cache's buffers."""
    layers = x.ndim - 4
    layout = spec(*[None] * layers, "batch", "heads", None, None)
    return x.at[(*[slice(None)] * layers, row)].get(mode="promise_in_bounds", out_sharding=layout)
