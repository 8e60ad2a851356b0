"""The next-token loss."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

IGNORED = -100


def next_token_loss(
    logits: Float[Array, "b t v"], labels: Int[Array, "b t"], attention_mask: Array | None = None
) -> Float[Array, ""]:
    """Mean cross-entropy of each token given those before it, float32.

    Targets labelled -100 and targets that `attention_mask` `[batch, seq]` marks as padding are left out, as IDEFICS was
    trained (`m4/models/idefics/modeling_idefics.py`); recent versions of `transformers` no longer look at the mask.
    """
    targets = labels[:, 1:]
    counted = targets != IGNORED
    if attention_mask is not None:
        counted &= attention_mask[:, 1:].astype(bool)
    log_probabilities = jax.nn.log_softmax(logits[:, :-1].astype(jnp.float32), axis=-1)
    picked = jnp.take_along_axis(log_probabilities, jnp.where(counted, targets, 0)[..., None], axis=-1)[..., 0]
    return -jnp.sum(picked * counted) / jnp.maximum(jnp.sum(counted), 1)
