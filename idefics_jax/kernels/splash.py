"""Attention whose scores never reach memory: JAX's splash kernel, on TPUs.

For long rows the scores are what plain attention spends its time on: `[heads, t, t]` numbers are written and read again
several times, in the backward pass too. The kernel makes them block by block, and skips blocks that causality empties.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from idefics_jax.parallel.mesh import constrain, per_shard, platform, spec

#: What a rematerialisation policy calls the kernel's results: with them the backward pass need not run it again.
SAVED = "attention"
LANES = 128  # a row of the TPU's vector registers
#: Queries and keys that the kernel has at a time in bfloat16, and keys that it makes scores with. Large blocks are half
#: empty, and yet faster: to start one takes as long as up to nine of its 64 tiles (`benchmarks.kernels`).
BLOCK, SCORES = 1024, 512


class Segments(NamedTuple):
    """Segment ids of packed rows: a token attends to itself and to earlier tokens of its own segment."""

    ids: Int[Array, "b t"]


def fits(length: int) -> bool:
    """Return True if the kernel supports rows of this length on the platform that is traced for."""
    return platform() == "tpu" and length % LANES == 0


def block_size(size: int, most: int, unit: int = LANES) -> int:
    """The largest part that divides so many tokens, or heads, evenly, is of whole units and at most `most`."""
    return next(part for part in range(min(size, most), 0, -unit) if size % part == 0)


def attended_at_a_time(length: int, itemsize: int) -> int:
    """Queries, and keys, that the kernel has at a time in rows of this length, of numbers of so many bytes."""
    return block_size(length, BLOCK * 2 // itemsize)


def segments(valid: Bool[Array, "b t"], segment_ids: Int[Array, "b t"] | None) -> Segments:
    """Segments of the same mask as `nn.masks.causal_mask`; padding sees padding, which changes nothing that is real."""
    ids = valid.astype(jnp.int32)
    return Segments(ids if segment_ids is None else ids * segment_ids)


def flash_attention(
    query: Float[Array, "b t n h"],
    key: Float[Array, "b n t h"],
    value: Float[Array, "b n t h"],
    segments: Segments,
    *,
    causal: bool = True,
    interpret: bool = False,
) -> Float[Array, "b t n h"]:
    """Self-attention within segments, each device over its own rows and heads.

    Args:
        query: scaled already, by `h**-0.5`.
        causal: to itself and what is earlier; else to all of the segment.
        interpret: run it on any machine, slowly, to test it.
    """
    heads, rows = spec("batch", "heads", None, None), spec("batch", None)
    attend = partial(_attend, causal=causal, interpret=interpret)
    attend = per_shard(attend, (heads, heads, heads, rows), heads, check_vma=False)
    return attend(query.swapaxes(1, 2), key, value, segments.ids).swapaxes(1, 2)


def flash_attention_to_all(
    query: Float[Array, "b t n h"],
    key: Float[Array, "b n t h"],
    value: Float[Array, "b n t h"],
    interpret: bool = False,
) -> Float[Array, "b t n h"]:
    """Self-attention of whole rows of any length, filled up for the kernel with tokens that no real one sees."""
    rows, length = query.shape[:2]
    filled = length + -length % LANES

    def fill(x: Array, axis: int) -> Array:
        return jnp.pad(x, [(0, filled - length if each == axis else 0) for each in range(x.ndim)])

    ids = jnp.broadcast_to((jnp.arange(filled) < length).astype(jnp.int32), (rows, filled))
    ids = Segments(constrain(ids, "batch"))
    query = query * query.shape[-1] ** -0.5
    y = flash_attention(fill(query, 1), fill(key, 2), fill(value, 2), ids, causal=False, interpret=interpret)
    return y[:, :length]


def _attend(
    query: Float[Array, "b n t h"],
    key: Float[Array, "b n t h"],
    value: Float[Array, "b n t h"],
    segment_ids: Int[Array, "b t"],
    causal: bool,
    interpret: bool,
) -> Float[Array, "b n t h"]:
    # Takes long to import, and initialises JAX, which several processes have to do together.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    _, heads, length, _ = query.shape
    block = attended_at_a_time(length, query.dtype.itemsize)
    scores = block_size(block, SCORES)
    mask = splash.CausalMask if causal else splash.FullMask
    kernel = splash.make_splash_mha(
        mask=splash.MultiHeadMask([mask((length, length))] * heads),
        block_sizes=splash.BlockSizes(
            block_q=block,
            block_kv=block,
            block_kv_compute=scores,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_kv_dkv_compute=scores,
            use_fused_bwd_kernel=True,
        ),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=SAVED,
        interpret=interpret,
    )

    def row(query: Array, key: Array, value: Array, ids: Array) -> Array:
        return kernel(query, key, value, segment_ids=splash.SegmentIds(ids, ids))  # pyright: ignore[reportReturnType]

    return jax.vmap(row)(query, key, value, segment_ids)
