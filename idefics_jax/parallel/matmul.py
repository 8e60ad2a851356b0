"""Products with weights, and look-ups in tables, that a mesh splits."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec, get_abstract_mesh, reshard
from jaxtyping import Array

from idefics_jax.parallel import collectives
from idefics_jax.parallel.mesh import constrain, per_shard, platform, reshape, shards, spec


def gathered(weight: Array) -> Array:
    """A weight as a matmul wants it: whole along the axis that `fsdp` splits in storage, still split over `tensor`."""
    if get_abstract_mesh().empty:
        return weight
    return reshard(weight, _whole(jax.typeof(weight).sharding.spec))


def _whole(stored: PartitionSpec) -> PartitionSpec:
    return PartitionSpec(*(None if axis == "fsdp" else axis for axis in stored))


def stays(weight: Array, moved: int) -> bool:
    """Return True if a weight split over `fsdp` stays in place, since fewer numbers, `moved`, would move instead."""
    return not get_abstract_mesh().empty and "fsdp" in jax.typeof(weight).sharding.spec and moved < weight.size


def sharded_matmul(
    x: Array, weight: Array, contracted: tuple[int, ...], *output_axes: str | None, dtype: Any = None
) -> Array:
    """`x`'s last axes times the `contracted` ones of a weight, of which the others are then the result's last axes.

    Both the weight and the rows of `x` are split over `fsdp`, so one of them must move: the weight is gathered; or it
    stays, where `x` and the result are smaller, as in decoding, and those are exchanged.

    Where they are smaller it is a product of matrices: with more axes the TPU compiler would first turn the weights
    round, so that heads come first, which then costs more than turning the result. So it is where several axes are
    contracted: of heads of 128, one at a time fills half of a v6e's matrix unit.
    """
    leading, kept = x.ndim - len(contracted), [axis for axis in range(weight.ndim) if axis not in contracted]
    between = (None,) * (leading - 1)
    results = math.prod(x.shape[:leading]) * math.prod(weight.shape[axis] for axis in kept)
    if weight.ndim > 2 and (len(contracted) > 1 or x.size + results < weight.size) and kept[0] == len(contracted):
        matrix = _merged(_merged(weight, kept[0], weight.ndim), 0, kept[0])
        y = sharded_matmul(_merged(x, leading, x.ndim), matrix, (0,), output_axes[0], dtype=dtype)
        sizes = (*x.shape[:leading], *(weight.shape[axis] for axis in kept))
        return reshape(y, sizes, "batch", *between, *output_axes)
    dimensions = ((tuple(range(leading, x.ndim)), contracted), ((), ()))
    layout = spec("batch", *between, *output_axes)
    if not stays(weight, x.size + results):
        if dtype is None and _by_side(weight):
            return _product_by_side(x, weight, contracted, layout)
        return _gathered_product(x, weight, contracted, layout, dtype)
    stored = jax.typeof(weight).sharding.spec
    x = reshard(x, PartitionSpec("data", *between, *(stored[axis] for axis in contracted)))
    there = PartitionSpec("data", *between, *(stored[axis] for axis in kept))
    y = jax.lax.dot_general(x, weight, dimensions, preferred_element_type=dtype, out_sharding=there)
    return reshard(y, layout)


def _merged(x: Array, start: int, stop: int) -> Array:
    """`x` with these axes as one; only the first of them may be split."""
    shape = (*x.shape[:start], math.prod(x.shape[start:stop]), *x.shape[stop:])
    if get_abstract_mesh().empty:
        return x.reshape(shape)
    stored = jax.typeof(x).sharding.spec
    return jax.lax.reshape(x, shape, out_sharding=PartitionSpec(*stored[: start + 1], *stored[stop:]))


def _by_side(weight: Array) -> bool:
    """Return True if a weight's gradient is summed along one side of the devices' grid after the other.

    `tensor` would lie across the sides.
    """
    mesh = get_abstract_mesh()
    if mesh.empty or mesh.shape["tensor"] > 1 or "fsdp" not in jax.typeof(weight).sharding.spec:
        return False
    return len(collectives.sides(mesh.shape["fsdp"])) > 1


def _gathered_product(
    x: Array, weight: Array, contracted: tuple[int, ...], layout: PartitionSpec | None, dtype: Any = None
) -> Array:
    dimensions = ((tuple(range(x.ndim - len(contracted), x.ndim)), contracted), ((), ()))
    by_side = dtype is None and _by_side(weight) and collectives.have_sparse_cores()
    if platform() == "tpu" and weight.ndim > 2:
        # Otherwise the compiler turns all layers' frozen weights round before their loop, and keeps both: 2 GiB of 16
        # where 16 chips share the 80B. (Trained ones are turned round as they are cast.)
        weight = with_layout_constraint(weight, Layout(tuple(range(weight.ndim))))
    whole = (_gathered_by_side if by_side else gathered)(weight)
    return jax.lax.dot_general(x, whole, dimensions, preferred_element_type=dtype, out_sharding=layout)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product_by_side(x: Array, weight: Array, contracted: tuple[int, ...], layout: PartitionSpec | None) -> Array:
    """As `sharded_matmul`, of a gathered weight whose gradient is added up `_by_side`."""
    return _gathered_product(x, weight, contracted, layout)


def _product_forward(
    x: Array, weight: Array, contracted: tuple[int, ...], layout: PartitionSpec | None
) -> tuple[Array, tuple[Array, Array]]:
    return _gathered_product(x, weight, contracted, layout), (x, weight)


def _product_backward(
    contracted: tuple[int, ...], layout: PartitionSpec | None, residuals: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    x, weight = residuals
    _, of_x = jax.vjp(lambda x: _gathered_product(x, weight, contracted, layout), x)
    stored, leading = jax.typeof(weight).sharding.spec, x.ndim - len(contracted)
    axes = [*contracted, *(axis for axis in range(weight.ndim) if axis not in contracted)]

    def of_weight(x: Array, gradient: Array) -> Array:
        own = collectives.scattered_product(x, gradient, leading, axes.index(stored.index("fsdp")))
        own = own.transpose([axes.index(axis) for axis in range(weight.ndim)])
        return own if get_abstract_mesh().shape["data"] == 1 else jax.lax.psum(own, "data")

    layouts = (jax.typeof(x).sharding.spec, jax.typeof(gradient).sharding.spec)
    scattered = jax.shard_map(of_weight, in_specs=layouts, out_specs=stored, check_vma=False)
    return of_x(gradient)[0], scattered(x, gradient)


_product_by_side.defvjp(_product_forward, _product_backward)


def _gathered_by_side(weight: Array) -> Array:
    """As `gathered`: SparseCores gather along one side of the grid at a time. TPU v5e has none: there a product itself
    has the next weights gathered meanwhile, and best over all sides."""
    stored = jax.typeof(weight).sharding.spec
    gather = partial(collectives.gathered, axis=stored.index("fsdp"))
    return jax.shard_map(gather, in_specs=stored, out_specs=_whole(stored), check_vma=False)(weight)


def embedding_lookup(table: Array, index: Array) -> Array:
    """Return rows `[b, t, d]` of a table `[v, d]`; as in `sharded_matmul`, it moves over `fsdp`, or the rows do."""
    layout = spec("batch", None, None)
    if index.size == 1 and shards("vocab") > 1 and jax.typeof(table).sharding.spec[0] is not None:
        return _look_up_one(table, index)
    if not stays(table, index.size * table.shape[1]):
        return gathered(table).at[index].get(out_sharding=layout)
    there = PartitionSpec("data", None, jax.typeof(table).sharding.spec[1])
    return reshard(table.at[reshard(index, PartitionSpec("data"))].get(out_sharding=there), layout)


def _look_up_one(table: Array, index: Array) -> Array:
    """Look up one row `[1, 1, d]` of a table whose rows are split over `tensor`: the devices without it add zeros.

    Left to itself, XLA's GPU compiler turns this lookup into a slice, and gathers the whole table to take it.
    """

    def own(table: Array, index: Array) -> Array:
        index = index - jax.lax.axis_index("tensor") * len(table)
        row = table[jnp.clip(index, 0, len(table) - 1)]
        here = (index >= 0) & (index < len(table))
        return jax.lax.psum(jnp.where(here[..., None], row, 0), "tensor")

    look_up = per_shard(own, (spec("vocab", None), spec("batch", None)), spec("batch", None, None))
    return look_up(gathered(table), constrain(index, "batch"))
