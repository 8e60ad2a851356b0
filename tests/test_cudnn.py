"""cuDNN's attention against plain attention: by the same call's other implementation on a CPU, and on a GPU if there is
one; and what is asked of cuDNN, which JAX says wherever its libraries are."""

from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from idefics_jax import make_mesh
from idefics_jax.attention import attention
from idefics_jax.cudnn import cudnn_attention, fits_cudnn
from idefics_jax.masks import causal_mask
from idefics_jax.sharding import constrain, on_mesh
from tests.attending import graded


def inputs(dtype, queries=64, keys=64, head_dim=80):
    shapes = [(2, queries, 4, head_dim), *[(2, 4, keys, head_dim)] * 2]
    return [
        jax.random.normal(key, shape).astype(dtype)
        for key, shape in zip(jax.random.split(jax.random.key(0), 3), shapes, strict=True)
    ]


def by_xla(*inputs):
    return cudnn_attention(*inputs, "xla")


def left_padded():
    return causal_mask(jnp.arange(64) >= jnp.array([[0], [10]]))


def two_images():
    return jnp.arange(64)[None, :, None] // 20 == jnp.broadcast_to(jnp.arange(32) // 16, (2, 1, 32))


@pytest.mark.parametrize("mask", [None, left_padded(), two_images()], ids=["whole rows", "left padded", "two images"])
def test_results_and_gradients_are_those_of_plain_attention(mask):
    rows = inputs("float32", keys=64 if mask is None else mask.shape[2])
    for one, other in zip(graded(by_xla, *rows, mask), graded(attention, *rows, mask), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_each_device_attends_over_its_own_rows_and_heads():
    rows, mask = inputs("float32"), left_padded()
    with on_mesh(make_mesh(1, 2, 4)):
        query = constrain(rows[0], "batch", None, "heads", None)
        key, value = (constrain(x, "batch", "heads", None, None) for x in rows[1:])
        y = jax.jit(by_xla)(query, key, value, constrain(mask, "batch"))
        assert jax.typeof(y).sharding.spec == jax.typeof(query).sharding.spec
    np.testing.assert_allclose(y, attention(*rows, mask), atol=1e-5)


def test_it_is_for_gpus():
    query, key, _ = inputs("bfloat16")
    assert not fits_cudnn(query, key, masked=True)  # this is a CPU


@pytest.mark.skipif(find_spec("jax_cuda13_plugin") is None, reason="needs the cuda extra, though no GPU")
@pytest.mark.parametrize(("mask", "bias"), [(None, ""), (left_padded(), "ScaleBias")], ids=["whole rows", "masked"])
def test_each_device_asks_cudnn_for_results_and_gradients(mask, bias):
    with on_mesh(make_mesh(1, 2, 4)):
        query, *rest = inputs("bfloat16")
        query = constrain(query, "batch", None, "heads", None)
        key, value = (constrain(x, "batch", "heads", None, None) for x in rest)
        mask = None if mask is None else constrain(mask, "batch")
        traced = jax.jit(lambda *rows: graded(cudnn_attention, *rows, mask)).trace(query, key, value)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count(f"@__cudnn$fmha{bias}Softmax(") == text.count(f"@__cudnn$fmha{bias}SoftmaxBackward(") == 1
    assert "tensor<1x64x1x80xbf16>" in text  # half of the rows, a quarter of the heads


@pytest.mark.accelerator
@pytest.mark.parametrize("mask", [None, left_padded(), two_images()], ids=["whole rows", "left padded", "two images"])
def test_on_a_gpu_cudnn_is_as_plain_attention_but_for_rounding(mask):
    rows = inputs("bfloat16", keys=64 if mask is None else mask.shape[2])
    assert fits_cudnn(*rows[:2], masked=mask is not None)
    exact = graded(by_xla, *(x.astype(jnp.float32) for x in rows), mask)
    for one, true in zip(graded(attention, *rows, mask), exact, strict=True):
        assert one.dtype == jnp.bfloat16
        np.testing.assert_allclose(one.astype(jnp.float32), true, atol=2**-6 * float(jnp.max(jnp.abs(true))))
