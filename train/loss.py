"""The loss of packed rows, from hidden states and the head in chunks, so that whole logits never exist."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from idefics_jax.nn.layers import Vocabulary
from idefics_jax.nn.loss import IGNORED
from idefics_jax.parallel.matmul import gathered
from idefics_jax.parallel.mesh import constrain, spec


class Sums(NamedTuple):
    """Sums over tokens, float32: of the cross-entropy, and of the squared log of the softmax's denominator."""

    cross_entropy: Float[Array, ""]
    z: Float[Array, ""]


def targets(labels: Int[Array, "... t"]) -> Int[Array, "... t"]:
    """What each position is to predict: the next position's label; nothing (-100) at the last."""
    return jnp.pad(labels[..., 1:], [(0, 0)] * (labels.ndim - 1) + [(0, 1)], constant_values=IGNORED)


@jax.named_scope("head")
def chunked_sums(
    hidden: Float[Array, "b t d"],
    vocabulary: Vocabulary,
    targets: Int[Array, "b t"],
    z_counted: Bool[Array, "b t"],
    chunk: int,
) -> Sums:
    """Both sums, over the positions whose target is not -100, and over those in `z_counted`.

    Args:
        hidden: the decoder's last states.
        chunk: positions of each row whose logits are in memory at a time; the backward pass computes them again.
    """
    length = hidden.shape[1]
    chunks = next(count for count in range(-(-length // chunk), length + 1) if length % count == 0)
    tables = [(gathered(table.astype(hidden.dtype)), axis) for table, axis in vocabulary.tables]

    @jax.checkpoint
    def body(sums: Sums, part: Any) -> tuple[Sums, None]:
        x, target, z_counted = part
        picked, log_partition, first = 0.0, -jnp.inf, 0
        for table, axis in tables:
            layout = ("batch", None, axis)  # the scores stay split over the vocabulary
            scores = jnp.einsum("btd,vd->btv", x, table, preferred_element_type=jnp.float32, out_sharding=spec(*layout))
            ids = constrain(first + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 2), *layout)
            picked += jnp.sum(jnp.where(ids == target[..., None], scores, 0.0), axis=-1)
            log_partition = jnp.logaddexp(log_partition, jax.nn.logsumexp(scores, axis=-1))
            first += table.shape[0]
        return Sums(
            sums.cross_entropy + jnp.sum(jnp.where(target == IGNORED, 0.0, log_partition - picked)),
            sums.z + jnp.sum(jnp.where(z_counted, jnp.square(log_partition), 0.0)),
        ), None

    def cut(x: Array) -> Array:
        rest = x.shape[2:]
        parts = jax.lax.reshape(
            x,
            (x.shape[0], chunks, length // chunks, *rest),
            out_sharding=spec("batch", None, None, *[None] * len(rest)),
        )
        return parts.swapaxes(0, 1)

    zero = jnp.zeros((), jnp.float32)
    sums, _ = jax.lax.scan(body, Sums(zero, zero), (cut(hidden), cut(targets), cut(z_counted)))
    return sums
