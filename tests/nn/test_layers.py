"""Activations against the exact ones."""

import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idefics_jax.nn.layers import gelu


def everything(dtype):
    """Every finite bfloat16, as `dtype`."""
    numbers = jax.lax.bitcast_convert_type(jnp.arange(2**16, dtype=jnp.uint16), jnp.bfloat16)
    return numbers[jnp.isfinite(numbers)].astype(dtype)


@pytest.mark.parametrize(("dtype", "rounding", "error"), [("float32", 2**-21, 1e-6), ("bfloat16", 2**-8, 4e-6)])
def test_gelu_and_its_slope_are_exact_but_for_rounding(dtype, rounding, error):
    numbers = everything(dtype)
    if "fusion_emitters=false" in os.environ["XLA_FLAGS"]:  # as JAX 0.10 tests: there tanh(-9) is 2e-7 above -1
        numbers = numbers[jnp.abs(numbers) < 16]
    x = np.float64(numbers)
    share = np.array([0.5 * math.erfc(-each * math.sqrt(0.5)) for each in x])
    y, backward = jax.vjp(gelu, numbers)
    slope = share + x * np.exp(-0.5 * np.square(np.clip(x, -40, 40))) / math.sqrt(2 * math.pi)
    for found, exact in ((y, x * share), (backward(jnp.ones_like(numbers))[0], slope)):
        assert found.dtype == numbers.dtype
        np.testing.assert_allclose(np.float64(found), exact, rtol=rounding, atol=error)
