"""cuDNN's attention against plain attention: by the same call's other implementation on a CPU, and on a GPU if there is
one; and what is asked of cuDNN, which JAX says wherever its libraries are."""

from functools import partial
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from idefics_jax import make_mesh
from idefics_jax.kernels.cudnn import cudnn_attention, fits_cudnn
from idefics_jax.nn.attention import Past, attention, joined
from idefics_jax.nn.masks import causal_mask
from idefics_jax.parallel.hardware import GPUS
from idefics_jax.parallel.mesh import MESH_AXES, constrain, on_mesh
from tests.support.attention import graded


def inputs(dtype, queries=64, keys=64, head_dim=80):
    shapes = [(2, queries, 4, head_dim), *[(2, 4, keys, head_dim)] * 2]
    return [
        jax.random.normal(key, shape).astype(dtype)
        for key, shape in zip(jax.random.split(jax.random.key(0), 3), shapes, strict=True)
    ]


def by_xla(*inputs, causal=False):
    return cudnn_attention(*inputs, causal=causal, implementation="xla")


def left_padded(tokens=64):
    return causal_mask(jnp.arange(tokens) >= jnp.array([[0], [10]]))


def two_images(tokens=64, keys=32):
    images = jnp.broadcast_to(jnp.arange(keys) // 16, (2, 1, keys))
    return jnp.arange(tokens)[None, :, None] // 20 == images


CASES = {
    "even": (64, 64, None, False),
    "odd": (257, 257, None, False),
    "odd keys": (64, 81, None, False),
    "causal": (64, 64, None, True),
    "odd and causal": (65, 65, None, True),
    "left padded": (64, 64, left_padded(), True),
    "odd and left padded": (63, 63, left_padded(63), True),
    "two images": (64, 32, two_images(), False),
    "odd, of two images": (65, 33, two_images(65, 33), False),
}


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        ("odd", "float32"),
        ("odd keys", "bfloat16"),
        ("odd and causal", "float32"),
        ("odd and left padded", "bfloat16"),
        ("odd, of two images", "float32"),
        pytest.param("odd", "bfloat16", marks=pytest.mark.slow),
        pytest.param("odd keys", "float32", marks=pytest.mark.slow),
        pytest.param("odd and causal", "bfloat16", marks=pytest.mark.slow),
        pytest.param("odd and left padded", "float32", marks=pytest.mark.slow),
        pytest.param("odd, of two images", "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_results_and_gradients_are_those_of_plain_attention(case, dtype):
    """Odd lengths are filled up for cuDNN."""
    queries, keys, mask, causal = CASES[case]
    rows = inputs(dtype, queries, keys)

    @jax.jit
    def both(*rows):
        exact = graded(partial(attention, causal=causal), *(x.astype(jnp.float32) for x in rows), mask)
        return graded(partial(by_xla, causal=causal), *rows, mask), exact

    for one, other in zip(*both(*rows), strict=True):
        assert one.shape == other.shape
        atol = 1e-5 if dtype == "float32" else 2**-6 * float(jnp.max(jnp.abs(other)))
        np.testing.assert_allclose(one.astype(jnp.float32), other, atol=atol)


def test_a_past_is_attended_to_with_what_is_new():
    """Long prompts after a cache: one call over both, of which padding and empty slots are hidden."""
    tokens = 21
    query, key, value = inputs("float32", tokens, tokens)
    _, old_key, old_value = inputs("float32", keys=33)
    past = Past(old_key.swapaxes(2, 3), old_value, jnp.arange(33) % jnp.array([[[5]], [[33]]]) < 20)
    mask = causal_mask(jnp.arange(tokens) >= jnp.array([[0], [3]]))
    expected = jax.jit(attention)(query, key, value, mask, past)
    y = jax.jit(lambda: by_xla(query, *joined(past, key, value, mask)))()
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_each_device_attends_over_its_own_rows_and_heads():
    rows, mask = inputs("float32"), left_padded()
    with on_mesh(make_mesh(1, 2, 4)):
        query = constrain(rows[0], "batch", None, "heads", None)
        key, value = (constrain(x, "batch", "heads", None, None) for x in rows[1:])
        y = jax.jit(by_xla)(query, key, value, constrain(mask, "batch"))
        assert jax.typeof(y).sharding.spec == jax.typeof(query).sharding.spec
        causal = jax.jit(partial(attention, causal=True))(query, key, value)  # makes its mask where its rows are
        past = Past(key.swapaxes(2, 3), value, constrain(mask[:, :1], "batch"))
        both = jax.jit(lambda *rows: by_xla(rows[0], *joined(past, *rows[1:])))(
            query, key, value, constrain(mask, "batch")
        )
    np.testing.assert_allclose(y, attention(*rows, mask), atol=1e-5)
    np.testing.assert_allclose(causal, attention(*rows, causal=True), atol=1e-5)
    alone = Past(rows[1].swapaxes(2, 3), rows[2], mask[:, :1])
    np.testing.assert_allclose(both, attention(*rows, mask, alone), atol=1e-5)


def gpu(kind):
    return AbstractDevice(device_kind=kind, num_cores=None, platform="gpu")


@pytest.mark.parametrize(
    ("dtype", "queries", "head_dim", "fits"),
    [
        ("bfloat16", 257, 80, True),
        ("float16", 64, 96, True),
        ("float32", 64, 80, False),
        ("bfloat16", 1, 128, False),  # decoding
        ("bfloat16", 64, 136, False),
        ("bfloat16", 64, 12, False),
    ],
)
@pytest.mark.parametrize("kind", [gpu.kind for gpu in GPUS.values()])
def test_it_is_for_many_queries_of_16_bits_on_gpus_that_may_be_absent(kind, dtype, queries, head_dim, fits):
    query = jnp.zeros((2, queries, 4, head_dim), dtype)
    assert not fits_cudnn(query)  # this is a CPU
    with on_mesh(AbstractMesh((1, 1, 1), MESH_AXES, (AxisType.Explicit,) * 3, abstract_device=gpu(kind))):
        assert fits_cudnn(query) is fits


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
@pytest.mark.parametrize("case", CASES)
def test_on_a_gpu_cudnn_is_as_plain_attention_but_for_rounding(case):
    queries, keys, mask, causal = CASES[case]
    rows = inputs("bfloat16", queries, keys)
    assert fits_cudnn(rows[0])
    exact = graded(partial(by_xla, causal=causal), *(x.astype(jnp.float32) for x in rows), mask)
    for one, true in zip(graded(partial(attention, causal=causal), *rows, mask), exact, strict=True):
        assert one.dtype == jnp.bfloat16
        np.testing.assert_allclose(one.astype(jnp.float32), true, atol=2**-6 * float(jnp.max(jnp.abs(true))))
