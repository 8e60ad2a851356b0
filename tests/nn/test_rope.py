"""The rotary kernel against the plain formula: results and gradients, interpreted on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idefics_jax import make_mesh
from idefics_jax.nn.rope import rotary_angles, rotate, rotate_by_kernel
from idefics_jax.parallel.mesh import constrain, on_mesh


def inputs(dtype="float32"):
    x = jax.random.normal(jax.random.key(0), (2, 256, 12, 128)).astype(dtype)
    positions = jnp.arange(512).reshape(2, 256)
    return x, rotary_angles(positions, 128, 10000.0)


def graded(turn, x, rope):
    """The result, and the gradient of a function of it."""

    @jax.jit
    def both(x, rope):
        y, backward = jax.vjp(lambda x: turn(x, rope), x)
        return y, *backward(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape).astype(y.dtype))

    return both(x, rope)


@pytest.mark.parametrize(
    ("dtype", "tolerance", "scale"),
    [
        ("float32", 1e-6, 128**-0.5),
        pytest.param("float32", 1e-6, 1.0, marks=pytest.mark.slow),
        ("bfloat16", 2e-2, 1.0),
        pytest.param("bfloat16", 2e-2, 128**-0.5, marks=pytest.mark.slow),
    ],
)
def test_results_and_gradients_are_those_of_the_formula(dtype, tolerance, scale):
    found = graded(lambda x, rope: rotate_by_kernel(x, rope, scale, interpret=True), *inputs(dtype))
    for one, other in zip(found, graded(lambda x, rope: rotate(x, rope, scale), *inputs(dtype)), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(np.float32(one), np.float32(other), atol=tolerance)


def test_each_device_turns_its_own_rows_and_heads():
    x, rope = inputs()
    with on_mesh(make_mesh(1, 2, 4)):
        laid, angles = constrain(x, "batch", None, "heads", None), constrain(rope, "batch")
        y = jax.jit(lambda x, rope: rotate_by_kernel(x, rope, interpret=True))(laid, angles)
        assert jax.typeof(y).sharding.spec == jax.typeof(laid).sharding.spec
    np.testing.assert_allclose(y, rotate(x, rope), atol=1e-6)


def test_turned_pairs_keep_their_length_and_meet_by_the_distance_of_their_positions():
    query, key = (jax.random.normal(jax.random.key(seed), (1, 1, 1, 64)) for seed in (1, 2))

    def score(at, other):
        turned = (rotate(x, rotary_angles(jnp.array([[p]]), 64, 10000.0)) for x, p in ((query, at), (key, other)))
        return jnp.vdot(*turned)

    np.testing.assert_allclose(score(0, 0), jnp.vdot(query, key), rtol=1e-5)
    np.testing.assert_allclose(score(9, 4), score(105, 100), rtol=1e-4)
