"""The attention kernel against plain attention: results and gradients, interpreted on a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import idefics_jax.kernels.splash
from idefics_jax import make_mesh
from idefics_jax.kernels.splash import fits, flash_attention, flash_attention_to_all, segments
from idefics_jax.nn.attention import attention
from idefics_jax.nn.masks import causal_mask
from idefics_jax.parallel.mesh import constrain, on_mesh

LENGTH = 256


def graded(attend, *inputs):
    """Results, and the gradients of a function of them."""

    def loss(*inputs):
        y = attend(*inputs)
        return jnp.sum(y * jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)), y

    gradients, y = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*inputs)
    return [y, *gradients]


def both(query, key, value, valid, segment_ids):
    """The kernel's, and plain attention's, where tokens are real."""

    def flash(query, key, value):
        query = query * query.shape[-1] ** -0.5
        y = flash_attention(query, key, value, segments(valid, segment_ids), interpret=True)
        return jnp.where(valid[:, :, None, None], y, 0)

    def plain(*inputs):
        return jnp.where(valid[:, :, None, None], attention(*inputs, causal_mask(valid, segment_ids)), 0)

    return graded(flash, query, key, value), graded(plain, query, key, value)


def rows(length=LENGTH, heads=2, head_dim=32):
    keys = jax.random.split(jax.random.key(0), 3)
    query = jax.random.normal(keys[0], (2, length, heads, head_dim))
    return query, *(jax.random.normal(one, (2, heads, length, head_dim)) for one in keys[1:])


def inputs(heads=2):
    places = np.arange(LENGTH)
    valid = jnp.array([places < 200, places >= 30])  # padding on the right, and on the left
    return *rows(heads=heads), valid, jnp.array([places // 70 + 1, places // 129 + 1])


@pytest.mark.parametrize(
    ("segmented", "block"),
    [(True, 256), *(pytest.param(segmented, 1024, marks=pytest.mark.slow) for segmented in (False, True))],
)
def test_results_and_gradients_are_those_of_plain_attention(segmented, block, monkeypatch):
    monkeypatch.setattr(idefics_jax.kernels.splash, "BLOCK", block)
    query, key, value, valid, segment_ids = inputs()
    found, expected = both(query, key, value, valid, segment_ids if segmented else None)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize("length", [17, *(pytest.param(length, marks=pytest.mark.slow) for length in (128, 257))])
def test_rows_of_any_length_are_attended_to_in_full(length):
    found = graded(lambda *inputs: flash_attention_to_all(*inputs, interpret=True), *rows(length, head_dim=20))
    for one, other in zip(found, graded(attention, *rows(length, head_dim=20)), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.slow
def test_each_device_attends_over_its_own_rows_and_heads():
    query, key, value, valid, segment_ids = inputs(heads=4)
    expected, _ = both(query, key, value, valid, segment_ids)
    with on_mesh(make_mesh(1, 2, 4)):
        query = constrain(query, "batch", None, "heads", None)
        key, value = (constrain(x, "batch", "heads", None, None) for x in (key, value))
        valid, segment_ids = constrain(valid, "batch"), constrain(segment_ids, "batch")
        query = query * query.shape[-1] ** -0.5
        y = jax.jit(lambda *x: flash_attention(*x, segments(valid, segment_ids), interpret=True))(query, key, value)
    np.testing.assert_allclose(jnp.where(valid[:, :, None, None], y, 0), expected[0], atol=2e-5)


def test_kernel_is_for_tpus_and_whole_lanes():
    assert not fits(LENGTH)  # this is a CPU
