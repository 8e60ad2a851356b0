"""The attention kernel against plain attention: results and gradients, interpreted on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idefics_jax import make_mesh
from idefics_jax.attention import attention
from idefics_jax.flash import fits, flash_attention, segments
from idefics_jax.masks import causal_mask
from idefics_jax.sharding import constrain, on_mesh

LENGTH = 256


def both(query, key, value, valid, segment_ids):
    """Results where tokens are real, and the gradients of a function of them: the kernel's, and plain attention's."""
    target = jnp.cos(jnp.arange(query.size, dtype=jnp.float32)).reshape(query.shape)

    def flash(query, key, value):
        return flash_attention(query, key, value, segments(valid, segment_ids), interpret=True)

    def plain(query, key, value):
        return attention(query, key, value, causal_mask(valid, segment_ids))

    def graded(attend):
        def loss(*inputs):
            y = jnp.where(valid[:, :, None, None], attend(*inputs), 0)
            return jnp.sum(y * target), y

        gradients, y = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(query, key, value)
        return [y, *gradients]

    return graded(flash), graded(plain)


def inputs(heads=2, head_dim=32):
    keys = jax.random.split(jax.random.key(0), 3)
    query = jax.random.normal(keys[0], (2, LENGTH, heads, head_dim))
    key, value = (jax.random.normal(one, (2, heads, LENGTH, head_dim)) for one in keys[1:])
    places = np.arange(LENGTH)
    valid = jnp.array([places < 200, places >= 30])  # padding on the right, and on the left
    return query, key, value, valid, jnp.array([places // 70 + 1, places // 129 + 1])


@pytest.mark.parametrize("segmented", [False, True])
def test_results_and_gradients_are_those_of_plain_attention(segmented):
    query, key, value, valid, segment_ids = inputs()
    found, expected = both(query, key, value, valid, segment_ids if segmented else None)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.slow
def test_each_device_attends_over_its_own_rows_and_heads():
    query, key, value, valid, segment_ids = inputs(heads=4)
    expected, _ = both(query, key, value, valid, segment_ids)
    with on_mesh(make_mesh(1, 2, 4)):
        query = constrain(query, "batch", None, "heads", None)
        key, value = (constrain(x, "batch", "heads", None, None) for x in (key, value))
        valid, segment_ids = constrain(valid, "batch"), constrain(segment_ids, "batch")
        y = jax.jit(lambda *x: flash_attention(*x, segments(valid, segment_ids), interpret=True))(query, key, value)
    np.testing.assert_allclose(jnp.where(valid[:, :, None, None], y, 0), expected[0], atol=2e-5)


def test_kernel_is_for_tpus_and_whole_lanes():
    assert not fits(LENGTH)  # this is a CPU
