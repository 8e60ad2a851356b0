"""Key-value cache for incremental decoding."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from idefics_jax.parallel.mesh import constrain, per_shard, spec


class KeyValue(NamedTuple):
    """Buffers of a layer, or of all layers where they are stacked: heads before slots, so that each head is a matrix.

    Keys lie across, so that `query @ key` and `weights @ value` read them as they are: on CPUs a matrix that lies the
    other way is transposed first, as a whole, at every step.
    """

    key: Float[Array, "*layers b n h s"]
    value: Float[Array, "*layers b n s h"]


class Cache(NamedTuple):
    """Keys and values. Listed models keep a `KeyValue` per layer, stacked ones stack them.

    Attributes:
        self_attention: per group and layer; slots are written once, in order.
        cross_attention: per group, `images * patches` slots, computed once from the images. The batch may be a whole
            fraction of that of the tokens: row `r` then sees the images of row `r // k`.
        valid: `[b, slots]` bool, slots that hold a real token (neither padding nor yet to be written).
        length: int32, slots written so far: the same for every row.
    """

    self_attention: Any
    cross_attention: Any
    valid: Bool[Array, "b slots"]
    length: Int[Array, ""]


def empty_buffers(
    depths: tuple[int, ...], batch: int, heads: int, slots: int, head_dim: int, dtype: Any, stacked: bool
) -> Any:
    """Return zeros for `(groups, layers)` or `(groups,)` layers, stacked or unrolled as the decoder's layers are."""
    if depths and not stacked:
        return tuple(empty_buffers(depths[1:], batch, heads, slots, head_dim, dtype, stacked) for _ in range(depths[0]))
    layout = (*[None] * len(depths), "batch", "heads")
    return KeyValue(
        constrain(jnp.zeros((*depths, batch, heads, head_dim, slots), dtype), *layout),
        constrain(jnp.zeros((*depths, batch, heads, slots, head_dim), dtype), *layout),
    )


def write(buffers: Any, new: Any, slot: Int[Array, ""]) -> Any:
    """The buffers of every layer with `t` new tokens in the slots from `slot` on; in place where they are donated."""

    def update(old: KeyValue, new: KeyValue) -> KeyValue:
        return KeyValue(*map(put, old, new, _slot_axes(old)))

    def put(old: Array, new: Array, axis: int) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), slot, axis)

    return jax.tree.map(update, buffers, new, is_leaf=_is_buffer)


def grow(buffers: Any, slots: int) -> Any:
    """The buffers of every layer with zeros after their slots, up to `slots` in all."""

    def pad(x: Array, axis: int) -> Array:
        return jnp.pad(x, [(0, slots - x.shape[axis] if i == axis else 0) for i in range(x.ndim)])

    return jax.tree.map(lambda old: KeyValue(*map(pad, old, _slot_axes(old))), buffers, is_leaf=_is_buffer)


def take_rows(buffers: Any, row: Int[Array, "r"]) -> Any:
    """The buffers whose row `r` is row `row[r]` of these.

    On a mesh each device takes from its own rows, and nothing moves between them: `row` may count them from the first
    of all or from the device's first.
    """

    def take(x: Array) -> Array:
        return _take(x, row, (*[None] * (x.ndim - 4), "batch", "heads"))

    return jax.tree.map(take, buffers)


def take_answers(cache: Cache, row: Int[Array, "r"]) -> Cache:
    """The cache whose row `r` is row `row[r]` of this one; the images' keys and values stay as they are."""
    return cache._replace(
        self_attention=take_rows(cache.self_attention, row), valid=_take(cache.valid, row, ("batch", None))
    )


def _take(x: Array, row: Int[Array, "r"], axes: tuple[str | None, ...]) -> Array:
    batch, layout = axes.index("batch"), spec(*axes)

    def take(x: Array, row: Array) -> Array:
        index = (*[slice(None)] * batch, row % x.shape[batch])
        return x.at[index].get(mode="promise_in_bounds")

    return per_shard(take, (layout, spec("batch")), layout)(x, constrain(row, "batch"))


def _is_buffer(x: Any) -> bool:
    return isinstance(x, KeyValue)


def _slot_axes(buffer: KeyValue) -> tuple[int, int]:
    return buffer.key.ndim - 1, buffer.value.ndim - 2
