"""What the tests of attention's kernels compare."""

import jax
import jax.numpy as jnp


def graded(attend, query, key, value, mask):
    """The result for tokens that see something, and the gradients of a function of it."""

    def seeing(*rows):
        y = attend(*rows, mask)
        return y if mask is None else jnp.where(jnp.any(mask, axis=-1)[:, :, None, None], y, 0)

    y, backward = jax.vjp(seeing, query, key, value)
    return y, *backward(jnp.cos(query))
