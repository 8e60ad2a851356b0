"""Rotary embedding of queries and keys, as a kernel for TPUs."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from idefics_jax.kernels.splash import LANES, block_size
from idefics_jax.parallel.mesh import per_shard, spec

#: Half cosines, half sines, float32: `nn.rope.rotary_angles`.
Rope = Float[Array, "b t h"]
#: Tokens and heads that the kernel turns at a time: 1 MiB of them, next to which the start of a step is short.
TOKENS, HEADS = 512, 8


def rotate_by_kernel(
    x: Float[Array, "b t n 128"], rope: Rope, scale: float = 1.0, interpret: bool = False
) -> Float[Array, "b t n 128"]:
    """The same by a kernel, each device for its own rows and heads: XLA's own programs for it read `x` several times.

    Args:
        interpret: run it on any machine, slowly, to test it.
    """
    heads, rows = spec("batch", "heads", None, None), spec("batch", None, None)
    turn = per_shard(partial(_turned, scale, interpret), (heads, rows), heads, check_vma=False)
    return turn(x.swapaxes(1, 2), rope).swapaxes(1, 2)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _turned(scale: float, interpret: bool, x: Float[Array, "b n t 128"], rope: Rope) -> Float[Array, "b n t 128"]:
    return _turn(x, rope, scale, 1.0, interpret)


def _forward(scale, interpret, x, rope):
    return _turn(x, rope, scale, 1.0, interpret), rope


def _backward(scale, interpret, rope, gradient):
    return _turn(gradient, rope, scale, -1.0, interpret), None


_turned.defvjp(_forward, _backward)


def _turn(x: Array, rope: Array, scale: float, direction: float, interpret: bool) -> Array:
    from jax.experimental import pallas as pl  # takes long to import
    from jax.experimental.pallas import tpu as pltpu

    batch, heads, length, width = x.shape
    together, tokens = block_size(heads, HEADS, unit=1), block_size(length, TOKENS)
    of_x = pl.BlockSpec((1, together, tokens, width), lambda row, place, head: (row, head, place, 0))
    of_rope = pl.BlockSpec((1, tokens, width), lambda row, place, head: (row, place, 0))
    return pl.pallas_call(
        partial(_turn_block, scale, direction),
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        grid=(batch, length // tokens, heads // together),
        in_specs=[of_x, of_rope],
        out_specs=of_x,
        input_output_aliases={0: 0},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(3 * x.size, 0, 2 * x.nbytes + rope.nbytes),
        interpret=interpret,
        name="rope",
    )(x, rope)


def _turn_block(scale, direction, x, rope, y):
    """A roll by half a row brings to each number its pair's other one, and to half of the angles the other half."""
    from jax.experimental.pallas import tpu as pltpu

    angles = scale * rope[0]
    rolled = pltpu.roll(angles, LANES // 2, 1)
    first = jax.lax.broadcasted_iota(jnp.int32, angles.shape, 1) < LANES // 2
    cos, sin = jnp.where(first, angles, rolled), direction * jnp.where(first, -rolled, angles)
    for head in range(x.shape[1]):
        numbers = x[0, head].astype(jnp.float32)
        y[0, head] = (numbers * cos + pltpu.roll(numbers, LANES // 2, 1) * sin).astype(y.dtype)
