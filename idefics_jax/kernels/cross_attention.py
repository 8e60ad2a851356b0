"""Cross-attention whose scores never reach memory: a kernel for TPUs.

Splash, takes one mask for all rows; here each row's tokens see images of their own. And a row has
few images: all their keys are on the chip at once, so that a softmax is done in one go, and the backward pass makes it
again instead of reading what the forward pass kept.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from idefics_jax.kernels.splash import LANES, SAVED, block_size, fits
from idefics_jax.parallel.mesh import per_shard, spec

#: Scores of masked pairs. Finite, so that a row which sees nothing gives finite numbers (its caller zeroes them).
MASKED = -1e30
#: Most keys of a row, 32 images' latents; and most scores that are made at a time, of all keys: 1 MiB.
KEYS, SCORES = 2048, 2**18


def fits_images(tokens: int, keys: int) -> bool:
    """Return True if the kernel supports rows of so many tokens and keys on the platform that is traced for."""
    return fits(tokens) and keys <= KEYS


def tokens_at_a_time(tokens: int, keys: int) -> int:
    """Queries that the kernel has at a time in rows of so many."""
    return block_size(tokens, SCORES // keys // LANES * LANES)


def attend_to_images(
    query: Float[Array, "b t n h"],
    key: Float[Array, "b n s h"],
    value: Float[Array, "b n s h"],
    mask: Bool[Array, "b t s"],
    interpret: bool = False,
) -> Float[Array, "b t n h"]:
    """Return what `nn.attention.attention` does, each device for its own rows and heads.

    What it gives for tokens that see nothing the caller has to drop: of them gradients would be otherwise.

    Args:
        interpret: run it on any machine, slowly, to test it.
    """
    heads, rows = spec("batch", "heads", None, None), spec("batch", None, None)
    attend = per_shard(partial(_attend, interpret), (heads, heads, heads, rows), heads, check_vma=False)
    return checkpoint_name(attend(query.swapaxes(1, 2), key, value, mask.astype(jnp.int8)), SAVED).swapaxes(1, 2)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    interpret: bool,
    query: Float[Array, "b n t h"],
    key: Float[Array, "b n s h"],
    value: Float[Array, "b n s h"],
    mask: Int[Array, "b t s"],
) -> Float[Array, "b n t h"]:
    return _call(_mean_block, "image_attention_fwd", interpret, (query,), (key, value), (), mask)[0]


def _forward(interpret, *inputs):
    return _attend(interpret, *inputs), inputs


def _backward(interpret, inputs, gradient):
    query, key, value, mask = inputs
    tokens, keys = (query, gradient), (key, value)
    return *_call(_gradient_block, "image_attention_bwd", interpret, tokens, keys, keys, mask), None


_attend.defvjp(_forward, _backward)


def _call(body, name, interpret, tokens, keys, key_results, mask):
    """The kernel over rows, heads and blocks of tokens, which makes as many numbers as the queries are. Of a head's
    blocks all have the same keys, and add to what is made for keys."""
    from jax.experimental import pallas as pl  # takes long to import
    from jax.experimental.pallas import tpu as pltpu

    rows, heads, length, head_dim = tokens[0].shape
    count = keys[0].shape[2]
    block = tokens_at_a_time(length, count)
    of_tokens = pl.BlockSpec((1, 1, block, head_dim), lambda row, head, place: (row, head, place, 0))
    of_keys = pl.BlockSpec((1, 1, count, head_dim), lambda row, head, place: (row, head, 0, 0))
    of_mask = pl.BlockSpec((1, block, count), lambda row, head, place: (row, place, 0))
    return pl.pallas_call(
        body,
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (tokens[0], *key_results)],
        grid=(rows, heads, length // block),
        in_specs=[of_mask, *[of_keys for _ in keys], *[of_tokens for _ in tokens]],
        out_specs=[of_tokens, *[of_keys for _ in key_results]],
        scratch_shapes=[pltpu.VMEM((count, head_dim), jnp.float32) for _ in key_results],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=interpret,
        name=name,
    )(mask, *keys, *tokens)


def _product(x, y, contracted):
    return jax.lax.dot_general(x, y, (contracted, ((), ())), preferred_element_type=jnp.float32)


_ROWS_BY_ROWS, _ROWS_BY_COLUMNS, _COLUMNS_BY_COLUMNS = ((1,), (1,)), ((1,), (0,)), ((0,), (0,))


def _exponentials(query, key, mask):
    """Numbers that are as the attention's weights to each other, `[t, s]`, and one over their sums, `[t, 1]`."""
    scores = _product(query, key, _ROWS_BY_ROWS) * query.shape[-1] ** -0.5
    scores = jnp.where(mask.astype(jnp.int32) != 0, scores, MASKED)
    numbers = jnp.exp(scores - jnp.max(scores, axis=1, keepdims=True))
    return numbers, 1 / jnp.sum(numbers, axis=1, keepdims=True)


def _mean_block(mask, key, value, query, mean):
    numbers, scale = _exponentials(query[0, 0], key[0, 0], mask[0])
    product = _product(numbers.astype(value.dtype), value[0, 0], _ROWS_BY_COLUMNS)
    mean[0, 0] = (product * scale).astype(mean.dtype)


def _gradient_block(mask, key, value, query, gradient, of_query, of_key, of_value, key_sum, value_sum):
    """Through the softmax as `weights * (gradient - their weighted mean)`."""
    from jax.experimental import pallas as pl

    @pl.when(pl.program_id(2) == 0)
    def _():
        key_sum[...], value_sum[...] = jnp.zeros_like(key_sum), jnp.zeros_like(value_sum)

    numbers, scale = _exponentials(query[0, 0], key[0, 0], mask[0])
    weights = numbers * scale
    of_weights = _product(gradient[0, 0], value[0, 0], _ROWS_BY_ROWS)
    of_scores = weights * (of_weights - jnp.sum(weights * of_weights, axis=1, keepdims=True))
    of_scores = (of_scores * query.shape[-1] ** -0.5).astype(query.dtype)
    of_query[0, 0] = _product(of_scores, key[0, 0], _ROWS_BY_COLUMNS).astype(of_query.dtype)
    key_sum[...] += _product(of_scores, query[0, 0], _COLUMNS_BY_COLUMNS)
    value_sum[...] += _product(weights.astype(query.dtype), gradient[0, 0], _COLUMNS_BY_COLUMNS)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        of_key[0, 0], of_value[0, 0] = key_sum[...].astype(of_key.dtype), value_sum[...].astype(of_value.dtype)
