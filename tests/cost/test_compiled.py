"""Programs compiled for TPUs here and now, and what they must cost by hand. Needs the TPU compiler, and no TPU."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from idefics_jax.cost import CHIPS, Cost, analyze, chip, memory
from idefics_jax.cost.kernels import kernel_cycles
from idefics_jax.kernels.cross_attention import KEYS, attend_to_images
from idefics_jax.kernels.splash import flash_attention, segments
from idefics_jax.nn.rope import rotary_angles, rotate_by_kernel

pytest.importorskip("libtpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server to ask what TPU this is
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

V5E = CHIPS["v5e"]
GIB = 2**30
#: Of chips whose pods are of two dimensions.
POD = {"v5e": ":2x2", "v6e": ":2x2"}
#: Two rows of 2,048 tokens, eight heads of 128.
TOKENS_FIRST, HEADS_FIRST = (2, 2048, 8, 128), (2, 8, 2048, 128)


@pytest.fixture(autouse=True, scope="module")
def not_kept() -> Iterator[None]:
    """JAX keeps programs for TPUs that are not there in its persistent cache, and cannot read them back."""
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)
    yield
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before)


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    """Four v5e chips in a ring, an axis "x"."""
    return Mesh(np.array(topologies.get_topology_desc("v5e:2x2", platform="tpu").devices), ("x",))


def compiled(
    function: Callable, mesh: Mesh, *shapes: tuple[int, ...], spec: Any = None, **jit: Any
) -> jax.stages.Compiled:
    """A function of bfloat16 arrays of these shapes, compiled for one device, or for all with a spec."""
    mesh = mesh if spec is not None else Mesh(mesh.devices[:1], ("x",))
    sharding = NamedSharding(mesh, spec if spec is not None else PartitionSpec())
    arguments = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding) for shape in shapes]
    return jax.jit(function, **jit).lower(*arguments).compile()


def cost_of(function: Callable, mesh: Mesh, *shapes: tuple[int, ...], spec: Any = None) -> Cost:
    """What it costs."""
    return analyze(compiled(function, mesh, *shapes, spec=spec).as_text(), V5E, mesh.size if spec is not None else 1)


@pytest.mark.parametrize("sizes", [(8192, 8192, 8192), (4096, 2048, 11008), (1024, 4096, 512)])
def test_a_matrix_product(mesh: Mesh, sizes: tuple[int, int, int]):
    m, k, n = sizes
    cost = cost_of(lambda a, b: a @ b, mesh, (m, k), (k, n))
    assert cost.matmul_flops == 2 * m * n * k
    roofline = max(2 * m * n * k / V5E.peak_flops, 2 * (m * k + k * n + m * n) / V5E.hbm_bandwidth)
    assert 1 <= cost.step_seconds / roofline < 1.4
    assert cost.unpriced == {}


def test_a_scan_of_products(mesh: Mesh):
    def layers(x, weights):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    cost = cost_of(layers, mesh, (4096, 4096), (6, 4096, 4096))
    assert cost.matmul_flops == 6 * 2 * 4096**3
    assert cost.unknown_loops == ()
    assert 1 <= cost.step_seconds / (6 * 2 * 4096**3 / V5E.peak_flops) < 1.6


def test_a_batched_product_counts_its_batch(mesh: Mesh):
    cost = cost_of(partial(jnp.einsum, "bnth,bnsh->bnts"), mesh, (2, 8, 1024, 128), (2, 8, 1024, 128))
    assert cost.matmul_flops == 2 * 2 * 8 * 1024 * 1024 * 128


def test_an_addition_is_bound_by_hbm(mesh: Mesh):
    cost = cost_of(jnp.add, mesh, (8192, 8192), (8192, 8192))
    assert cost.hbm_bytes == 3 * 2 * 8192**2
    assert cost.step_seconds == pytest.approx(3 * 2 * 8192**2 / V5E.hbm_bandwidth / 0.85)
    assert cost.bound == "HBM"


@pytest.mark.parametrize(
    ("kind", "function", "result", "bytes_sent"),
    [
        ("all-gather", partial(jax.lax.all_gather, axis_name="x", tiled=True), PartitionSpec(), 3 * 2 * 2048 * 8192),
        ("all-reduce", partial(jax.lax.psum, axis_name="x"), PartitionSpec(), 2 * 3 / 4 * 2 * 2048 * 8192),
        (
            "collective-permute",
            partial(jax.lax.ppermute, axis_name="x", perm=[(0, 1), (1, 3), (3, 2), (2, 0)]),
            PartitionSpec("x"),
            2 * 2048 * 8192,
        ),
    ],
)
def test_collectives(mesh: Mesh, kind: str, function: Callable, result: PartitionSpec, bytes_sent: float):
    along = PartitionSpec("x")
    function = jax.shard_map(function, mesh=mesh, in_specs=along, out_specs=result, check_vma=False)
    cost = cost_of(function, mesh, (8192, 8192), spec=along)
    (found,) = cost.collectives
    assert (found.kind, found.network, found.wire_bytes) == (kind, "ICI", bytes_sent)
    assert found.seconds == pytest.approx(bytes_sent / (90e9 if kind == "collective-permute" else 180e9))
    assert cost.exposed_seconds == pytest.approx(found.seconds - (0 if found.synchronous else cost.adjusted_seconds))


def test_a_reduce_scatter(mesh: Mesh):
    along = PartitionSpec("x")
    function = partial(jax.lax.psum_scatter, axis_name="x", tiled=True)
    function = jax.shard_map(function, mesh=mesh, in_specs=along, out_specs=along)
    cost = cost_of(function, mesh, (8192, 8192), spec=along)
    (found,) = (each for each in cost.collectives if each.kind == "reduce-scatter")
    assert found.group == 4
    expected = 3 / 4 * 2 * 2048 * 8192
    assert expected <= found.wire_bytes <= 1.04 * expected  # the compiler pads 2048 rows to 2112, and shifts the rest


def test_collectives_between_slices():
    devices = topologies.get_topology_desc("v5e:2x2", platform="tpu", num_slices=2).devices
    order = sorted(devices, key=lambda device: (device.slice_index, device.id))
    mesh = Mesh(np.array(order).reshape(2, 4), ("slices", "x"))
    spec = PartitionSpec(("slices", "x"))
    function = jax.shard_map(
        partial(jax.lax.psum, axis_name="slices"), mesh=mesh, in_specs=spec, out_specs=PartitionSpec("x")
    )
    cost = cost_of(function, mesh, (4096, 4096), spec=spec)
    (found,) = cost.collectives
    assert (found.kind, found.network, found.group) == ("all-reduce", "DCN", 2)
    assert found.wire_bytes == 2 * 512 * 4096
    assert found.exposed_seconds == pytest.approx(found.wire_bytes / 3.125e9)
    assert cost.bound == "interconnect"


def test_components_of_a_step_by_its_scopes(mesh: Mesh):
    def loss(params, x):
        def layer(x, w):
            with jax.named_scope("self_attention"):
                x = x + jnp.tanh(x @ w)
            with jax.named_scope("mlp"):
                return x + jnp.exp(x @ w.T @ w), None

        layers, head = params
        x, _ = jax.lax.scan(jax.checkpoint(layer), x, layers)
        with jax.named_scope("head"):
            return jnp.sum(jax.nn.logsumexp((x @ head).astype(jnp.float32), -1))

    def step(layers, head, x):
        gradients = jax.grad(loss)((layers, head), x)
        with jax.named_scope("optimizer"):
            return jax.tree.map(lambda w, g: w - g / jnp.sqrt(1e-3 + g * g), (layers, head), gradients)

    cost = cost_of(step, mesh, (4, 1024, 1024), (1024, 8192), (8192, 1024))
    assert set(cost.by_component) == {"self_attention", "mlp", "head", "optimizer", "other"}
    # Forward, forward again, and backward twice as much; the head is computed once.
    assert cost.matmul_flops == pytest.approx(4 * 4 * 3 * 2 * 8192 * 1024**2 + 3 * 2 * 8192 * 8192 * 1024, rel=0.2)
    seconds = cost.by_component
    assert seconds["other"] < 0.1 * cost.step_seconds
    assert 1.3 < seconds["mlp"] / seconds["self_attention"] < 3
    assert seconds["optimizer"] < seconds["self_attention"]
    assert sum(seconds.values()) == pytest.approx(cost.step_seconds)


def test_memory_of_a_program(mesh: Mesh):
    found = memory(compiled(lambda a, b: a @ b, mesh, (8192, 8192), (8192, 8192)), V5E)
    matrix = 2 * 8192**2
    assert (found.arguments, found.outputs, found.aliased, found.temporaries) == (2 * matrix, matrix, 0, 0)
    assert found.total >= 3 * matrix + found.code > 3 * matrix
    assert found.fits
    assert found.free == V5E.hbm_bytes - found.total


def test_memory_of_a_donated_argument(mesh: Mesh):
    found = memory(compiled(lambda a, b: a @ b, mesh, (8192, 8192), (8192, 8192), donate_argnums=0), V5E)
    matrix = 2 * 8192**2
    assert found.aliased == found.outputs == matrix
    assert found.temporaries == matrix  # the product cannot be written over what is still read


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("name", CHIPS)
def test_our_kernels_compile_without_options_and_are_priced(name: str, dtype: Any):
    place = SingleDeviceSharding(
        topologies.get_topology_desc(name + POD.get(name, ":2x2x1"), platform="tpu").devices[0]
    )
    tokens, heads = (jax.ShapeDtypeStruct(shape, dtype, sharding=place) for shape in (TOKENS_FIRST, HEADS_FIRST))
    positions = jax.ShapeDtypeStruct(TOKENS_FIRST[:2], jnp.int32, sharding=place)

    def step(query: Any, key: Any, value: Any, positions: Any, gradient: Any) -> Any:
        def attend(query: Any, key: Any, value: Any) -> Any:
            rope = rotary_angles(positions, 128, 10000.0)
            query, key = rotate_by_kernel(query, rope, 128**-0.5), rotate_by_kernel(key, rope)
            return flash_attention(query, key.swapaxes(1, 2), value, segments(positions >= 0, None))

        y, backward = jax.vjp(attend, query, key, value)
        return y, backward(gradient)

    text = jax.jit(step).lower(tokens, tokens, heads, positions, tokens).compile().as_text()
    cost = analyze(text, CHIPS[name], 1, kernel_cycles=kernel_cycles)
    assert cost.unpriced == {}
    priced = [operation for operation in cost.top if operation.category == "pallas"]
    assert len(priced) == 6  # queries and keys turned, there and back, and attention's two passes
    assert all(operation.seconds > 0 for operation in priced)


@pytest.mark.parametrize("keys", [64, 2 * 257, KEYS])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("name", CHIPS)
def test_the_kernel_for_images_compiles_without_options_and_is_priced(name: str, dtype: Any, keys: int):
    place = SingleDeviceSharding(
        topologies.get_topology_desc(name + POD.get(name, ":2x2x1"), platform="tpu").devices[0]
    )
    tokens, images = (jax.ShapeDtypeStruct(shape, dtype, sharding=place) for shape in (TOKENS_FIRST, (2, 8, keys, 128)))
    mask = jax.ShapeDtypeStruct((*TOKENS_FIRST[:2], keys), jnp.bool, sharding=place)

    def step(query: Any, key: Any, value: Any, mask: Any, gradient: Any) -> Any:
        y, backward = jax.vjp(lambda *x: attend_to_images(*x, mask), query, key, value)
        return y, backward(gradient)

    text = jax.jit(step).lower(tokens, images, images, mask, tokens).compile().as_text()
    cost = analyze(text, CHIPS[name], 1, kernel_cycles=kernel_cycles)
    assert cost.unpriced == {}
    assert len([operation for operation in cost.top if operation.category == "pallas" and operation.seconds > 0]) == 2


@pytest.mark.parametrize("name", CHIPS)
def test_a_program_that_is_too_large_is_told_the_memory_that_the_table_has(name: str):
    topology = topologies.get_topology_desc(name + POD.get(name, ":2x2x1"), platform="tpu")
    mesh = Mesh(np.array(topology.devices), ("x",))
    with pytest.raises(jax.errors.JaxRuntimeError, match=f"exceeds available HBM .{chip(name).hbm_bytes / GIB:.2f}G"):
        compiled(lambda *arrays: [each + 1 for each in arrays], mesh, *[(65536, 65536)] * 14)
