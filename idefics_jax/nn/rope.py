"""Rotary position embedding (Su et al. 2021)."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from idefics_jax.kernels.rope import Rope, rotate_by_kernel
from idefics_jax.kernels.splash import LANES, fits


def rotary_angles(positions: Int[Array, "b t"], head_dim: int, theta: float) -> Rope:
    """Cosines, and then sines, of the rotary embedding's angles at `positions`."""
    frequencies = theta ** -(jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def rotate(x: Float[Array, "b t n h"], rope: Rope, scale: float = 1.0) -> Float[Array, "b t n h"]:
    """Turns each pair `(x[j], x[j + h/2])` by its angle, and scales it: LLaMA's half-split layout, not interleaved."""
    if fits(x.shape[1]) and x.shape[3] == LANES:
        return rotate_by_kernel(x, rope, scale)
    cos, sin = jnp.split(scale * rope[:, :, None], 2, axis=-1)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
