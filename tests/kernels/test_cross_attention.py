"""The cross-attention kernel against plain attention: results and gradients, interpreted on a CPU."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import idefics_jax.kernels.cross_attention
from idefics_jax import make_mesh
from idefics_jax.kernels.cross_attention import attend_to_images, fits_images
from idefics_jax.nn.attention import attention
from idefics_jax.nn.masks import image_mask
from idefics_jax.parallel.mesh import constrain, on_mesh
from tests.support.attention import graded

TOKENS = 256


def inputs(images=3, patches=64, heads=4, dtype="float32"):
    """Of which a token sees one image, the next two, and every fourth none; the second row lacks the last image."""
    query, key, value = (
        jax.random.normal(each, shape).astype(dtype)
        for each, shape in zip(
            jax.random.split(jax.random.key(0), 3),
            [(2, TOKENS, heads, 32), *[(2, heads, images * patches, 32)] * 2],
            strict=True,
        )
    )
    places = np.arange(TOKENS)[:, None]
    attends = (places % 4 > np.arange(images)) & (np.arange(images) < [[[images]], [[images - 1]]])
    return query, key, value, image_mask(jnp.array(attends), patches)


def by_kernel(*inputs):
    return attend_to_images(*inputs, interpret=True)


def compiled(attend, *inputs):
    return jax.jit(partial(graded, attend))(*inputs)


@pytest.mark.parametrize(
    ("blocks", "patches"),
    [(2, 64), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in ((1, 257), (1, 64), (2, 257)))],
)
def test_results_and_gradients_are_those_of_plain_attention(patches, blocks, monkeypatch):
    monkeypatch.setattr(idefics_jax.kernels.cross_attention, "SCORES", TOKENS // blocks * 3 * patches)
    rows = inputs(patches=patches)
    for one, other in zip(compiled(by_kernel, *rows), compiled(attention, *rows), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_in_bfloat16_results_and_gradients_are_those_of_float32_but_for_rounding():
    *rows, mask = inputs(dtype="bfloat16")
    exact = compiled(attention, *(x.astype(jnp.float32) for x in rows), mask)
    for one, true in zip(compiled(by_kernel, *rows, mask), exact, strict=True):
        assert one.dtype == jnp.bfloat16
        np.testing.assert_allclose(one.astype(jnp.float32), true, atol=2**-7 * float(jnp.max(jnp.abs(true))))


def test_each_device_attends_over_its_own_rows_and_heads():
    rows = inputs()
    with on_mesh(make_mesh(1, 2, 4)):
        query = constrain(rows[0], "batch", None, "heads", None)
        key, value = (constrain(x, "batch", "heads", None, None) for x in rows[1:3])
        y = jax.jit(by_kernel)(query, key, value, constrain(rows[3], "batch"))
        assert jax.typeof(y).sharding.spec == jax.typeof(query).sharding.spec
    np.testing.assert_allclose(y, attention(*rows), atol=2e-5)


def test_the_kernel_is_for_tpus():
    assert not fits_images(TOKENS, 192)  # this is a CPU
