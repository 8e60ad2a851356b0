"""Meshes: the forward pass is the same on every one, and the published models lie on a pod as they should."""

import dataclasses
import itertools
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding

from idefics_jax import POCKET, IdeficsConfig, IdeficsForVisionText2Text, make_mesh
from idefics_jax.checkpoints import hf_names
from idefics_jax.nn.layers import Dropout
from idefics_jax.parallel.collectives import ring, sides, tiled
from idefics_jax.parallel.matmul import embedding_lookup, sharded_matmul
from idefics_jax.parallel.mesh import MESH_AXES, constrain, mesh_of, on_mesh, spec

GOLDEN = Path(__file__).parents[1] / "reference" / "idefics_80b_parameters.txt"


def pod(data, fsdp, tensor):
    return AbstractMesh((data, fsdp, tensor), MESH_AXES, axis_types=(AxisType.Explicit,) * 3)


def config(**changes):
    """Tiny, with every sharded axis divisible by 8."""
    tiny = IdeficsConfig.tiny()
    vision = dataclasses.replace(tiny.vision_config, embed_dim=32, num_attention_heads=8)
    perceiver = dataclasses.replace(tiny.perceiver_config, resampler_n_heads=8)
    changes = {
        "num_attention_heads": 8,
        "dtype": "float32",
        "vision_config": vision,
        "perceiver_config": perceiver,
    } | changes
    return dataclasses.replace(tiny, **changes)


def batch(config, rows=8):
    random, size = np.random.default_rng(0), config.vision_config.image_size
    attention_mask = np.ones((rows, 6), np.int32)
    attention_mask[0, :3] = 0
    return {
        "input_ids": random.integers(3, config.vocab_size + 2, (rows, 6), np.int32),
        "attention_mask": attention_mask,
        "pixel_values": random.standard_normal((rows, 2, size, size, 3), np.float32),
        "image_attention_mask": random.integers(0, 2, (rows, 6, 2), np.int32),
    }


def shallow(config):
    """The same with one layer of each kind, and two of the decoder's: listed layers are all compiled."""
    return dataclasses.replace(
        config,
        num_hidden_layers=2,
        cross_layer_interval=1,
        vision_config=dataclasses.replace(config.vision_config, num_hidden_layers=1),
        perceiver_config=dataclasses.replace(config.perceiver_config, resampler_depth=1),
    )


def made(config, stacked):
    """Random weights as large as a model's before training, without a program that draws them."""
    random = np.random.default_rng(0)

    def leaf(path, shape):
        values = config.initializer_range * random.standard_normal(shape.shape, np.float32)
        name = jax.tree_util.keystr(path)
        return jnp.asarray(1 + values if "scale" in name or "alpha" in name else values)

    return jax.tree_util.tree_map_with_path(leaf, IdeficsForVisionText2Text.abstract(config, stacked=stacked))


def spread_over(mesh, model, stacked):
    shapes = IdeficsForVisionText2Text.abstract(model.config, mesh=mesh, stacked=stacked)
    return jax.tree.map(lambda leaf, shape: jax.device_put(leaf, shape.sharding), model, shapes)


def of_kinds(default):
    """Every mesh with listed and with stacked layers, of which the default run takes some that use every axis."""
    pairs = itertools.product(((8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2), (1, 2, 4)), (False, True))
    return [
        pytest.param(
            *pair, marks=() if pair in default else pytest.mark.slow, id=f"{pair[0]}-{('listed', 'stacked')[pair[1]]}"
        )
        for pair in pairs
    ]


@pytest.mark.parametrize(("sizes", "stacked"), of_kinds([((2, 2, 2), True)]))
def test_the_forward_pass_is_the_same_on_every_mesh(sizes, stacked):
    mesh, arrays = make_mesh(*sizes), batch(config())
    alone = made(config() if stacked else shallow(config()), stacked)
    spread = spread_over(mesh, alone, stacked)
    labels = arrays["input_ids"]
    expected = alone(**arrays, labels=labels)
    output = spread(**arrays, labels=labels)
    assert output.logits.sharding.spec[0] == ("data", "fsdp")
    real = arrays["attention_mask"].astype(bool)
    np.testing.assert_allclose(np.asarray(output.logits)[real], np.asarray(expected.logits)[real], atol=2e-5)
    np.testing.assert_allclose(output.loss, expected.loss, rtol=1e-5)


@pytest.mark.parametrize(("sizes", "stacked"), of_kinds([((2, 2, 2), True)]))
def test_random_weights_are_the_same_on_every_mesh(sizes, stacked):
    one_layer, key = dataclasses.replace(shallow(config(use_resampler=False)), num_hidden_layers=1), jax.random.key(0)
    alone = IdeficsForVisionText2Text.from_config(one_layer, key, stacked=stacked)
    spread = IdeficsForVisionText2Text.from_config(one_layer, key, stacked=stacked, mesh=make_mesh(*sizes))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), alone, spread)
    shapes = IdeficsForVisionText2Text.abstract(one_layer, mesh=make_mesh(*sizes), stacked=stacked)
    assert jax.tree.all(jax.tree.map(lambda x, shape: x.sharding == shape.sharding, spread, shapes))


def test_tables_and_widths_that_do_not_divide_are_whole_on_every_device(tmp_path):
    """The vocabulary is no multiple of `tensor`, and the vision tower's width none of `fsdp`."""
    vision = dataclasses.replace(config().vision_config, embed_dim=42, num_attention_heads=6)
    odd = shallow(config(vocab_size=301, hidden_size=84, num_attention_heads=6, vision_config=vision))
    mesh, arrays = make_mesh(1, 4, 2), batch(odd)
    alone = made(odd, stacked=True)
    alone.save_pretrained(tmp_path / "alone")
    spread = IdeficsForVisionText2Text.from_pretrained(tmp_path / "alone", mesh=mesh, stacked=True)
    expected = alone(**arrays, labels=arrays["input_ids"])
    output = spread(**arrays, labels=arrays["input_ids"])
    real = arrays["attention_mask"].astype(bool)
    np.testing.assert_allclose(np.asarray(output.logits)[real], np.asarray(expected.logits)[real], atol=2e-5)
    np.testing.assert_allclose(output.loss, expected.loss, rtol=1e-5)
    spread.save_pretrained(tmp_path / "spread")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("alone", "spread")]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((1, 1, 3), r"tensor=3 does not divide .*num_attention_heads \(4\).*; tensor can be 1, 2, 4, and"),
        ((1, 1, 8), r"tensor=8 does not divide .*resampler_n_heads \(4\)"),
        ((1, 1, 5), r"tensor=5 does not divide .*vision_config.intermediate_size \(576\)"),
        ((2, 1, 3), r"tensor=3 does not divide .*vision_config.num_attention_heads \(4\)"),
    ],
    ids=str,
)
def test_a_mesh_that_does_not_divide_the_model_is_refused(sizes, message):
    mesh = make_mesh(*sizes, devices=jax.devices()[: math.prod(sizes)])
    pocket = IdeficsConfig.from_pretrained(POCKET)
    with pytest.raises(ValueError, match=message):
        IdeficsForVisionText2Text.from_pretrained(POCKET, mesh=mesh)
    with pytest.raises(ValueError, match=message):
        IdeficsForVisionText2Text.from_config(pocket, jax.random.key(0), mesh=mesh)
    with pytest.raises(ValueError, match=message):
        IdeficsForVisionText2Text.abstract(pocket, mesh=mesh)


def test_without_a_resampler_its_heads_do_not_matter():
    perceiver = dataclasses.replace(config().perceiver_config, resampler_n_heads=3)
    IdeficsForVisionText2Text.abstract(config(use_resampler=False, perceiver_config=perceiver), mesh=pod(1, 1, 8))
    with pytest.raises(ValueError, match=r"resampler_n_heads \(3\); tensor can be 1, and"):
        IdeficsForVisionText2Text.abstract(config(perceiver_config=perceiver), mesh=pod(1, 1, 8))


def test_without_a_mesh_nothing_changes():
    x = jax.numpy.ones((2, 3))
    assert spec("batch", None) is None
    assert constrain(x, "batch", None) is x
    assert mesh_of(x) is None


@pytest.mark.parametrize(
    ("sizes", "shape"), [((), (1, 8, 1)), ((2,), (2, 4, 1)), ((2, 2, -1), (2, 2, 2)), ((-1, 1, 8), (1, 1, 8))], ids=str
)
def test_one_size_of_a_mesh_may_be_whatever_is_left(sizes, shape):
    assert make_mesh(*sizes).axis_sizes == shape


@pytest.mark.parametrize("sizes", [(3,), (16,), (2, 2, 1), (0, -1, 1), (-1, -1, 1), (-2, -4, 1)], ids=str)
def test_meshes_that_do_not_fit_the_devices(sizes):
    with pytest.raises(ValueError, match="does not use 8 devices"):
        make_mesh(*sizes)


@pytest.mark.parametrize("preset", ["idefics_9b", "idefics_80b_instruct"])
@pytest.mark.parametrize("sizes", [(1, 256, 1), (1, 64, 4), (2, 32, 8)], ids=str)
def test_the_published_models_lie_evenly_on_pods(preset, sizes):
    """Traced on meshes of 256 and 512 chips that are not there: a chip holds its share, and little more."""
    model = IdeficsForVisionText2Text.abstract(
        getattr(IdeficsConfig, preset)(), param_dtype="bfloat16", mesh=pod(*sizes), stacked=True
    )
    leaves = jax.tree.leaves(model)
    whole = sum(leaf.size for leaf in leaves)
    share = sum(int(np.prod(leaf.sharding.shard_shape(leaf.shape))) for leaf in leaves)
    assert whole / (sizes[1] * sizes[2]) <= share <= 1.1 * whole / (sizes[1] * sizes[2])


def parameters():
    """A line per parameter of the stacked 80B: path, shape, and what each axis is split over."""
    config = IdeficsConfig.idefics_80b()
    model = IdeficsForVisionText2Text.abstract(config, mesh=pod(2, 32, 8), stacked=True)
    for weight in hf_names.weights(model, config):
        shape, axes = weight.leaf.shape, weight.leaf.sharding.spec
        axes = [*axes, *[None] * (len(shape) - len(axes))]
        split = " ".join(f"{size}/{axis}" if axis else str(size) for size, axis in zip(shape, axes, strict=True))
        yield f"{weight.path} [{split}]"


def test_parameters_are_where_they_were():
    """After a change: `python -m tests.parallel.test_sharding > tests/reference/idefics_80b_parameters.txt`."""
    assert list(parameters()) == GOLDEN.read_text().splitlines()


if __name__ == "__main__":
    print(*parameters(), sep="\n")


@dataclasses.dataclass(frozen=True)
class FakeDevice:
    """What meshes look at of the devices of several slices."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "cpu"
    device_kind: str = "cpu"
    client: Any = None
    coords: tuple[int, ...] | None = None


def test_slices_hold_whole_copies_of_the_weights():
    devices = [FakeDevice(number, number // 4) for number in (0, 4, 1, 5, 2, 6, 3, 7)]
    mesh = make_mesh(data=2, fsdp=2, tensor=2, devices=devices)
    assert [{device.slice_index for device in copy.flat} for copy in mesh.devices] == [{0}, {1}]
    with pytest.raises(ValueError, match=r"2 slices; data=1 must be a multiple"):
        make_mesh(data=1, fsdp=8, devices=devices)


@pytest.mark.parametrize("sizes", [(1, 8, 1), (1, 1, 8), (2, 2, 2), (1, 4, 2), (8, 1, 1)], ids=str)
def test_gpus_are_taken_host_by_host_whatever_their_coordinates_and_slices(sizes):
    """They have coordinates without cores; each host may be an NVLink domain, which is no slice of a pod."""
    devices = [
        FakeDevice(4 * host + at, slice_index=host, process_index=host, platform="gpu", coords=(host, 0, at))
        for at in range(4)
        for host in range(2)
    ]
    mesh = make_mesh(*sizes, devices=devices)
    assert mesh.axis_sizes == sizes
    assert [device.id for device in mesh.devices.flat] == list(range(8))


def test_copies_of_the_weights_are_squares_of_a_slice():
    def device(slice_index, x, y):
        return SimpleNamespace(
            slice_index=slice_index, coords=(x, y, 0), core_on_chip=0, platform="tpu", device_kind="TPU v5 lite"
        )

    devices = [device(number, x, y) for y in range(8) for x in range(4) for number in range(2)]
    squares = np.array(tiled(devices, 16)).reshape(4, 4, 4)
    assert [{(each.slice_index, each.coords[1] // 4) for each in square.flat} for square in squares] == [
        {(0, 0)},
        {(0, 1)},
        {(1, 0)},
        {(1, 1)},
    ]
    for along in (squares, squares.swapaxes(1, 2)):  # neighbours are neighbours
        for line in along.reshape(-1, 4):
            steps = [np.subtract(one.coords, other.coords) for one, other in itertools.pairwise(line)]
            assert [abs(step).sum() for step in steps] == [1, 1, 1]
    assert [each.slice_index for each in tiled(devices, 32)] == [0] * 32 + [1] * 32
    assert tiled(devices[:48], 8) is None  # 6 by 4 is no multiple of 4 by 2


@pytest.mark.parametrize(
    ("kind", "devices", "expected"),
    [
        ("TPU v5 lite", 16, (4, 4)),
        ("TPU v6 lite", 8, (4, 2)),
        ("TPU v5 lite", 4, (2, 2)),
        ("TPU v5 lite", 1, ()),
        ("TPU v5", 64, (4, 4, 4)),
        ("TPU v5p", 128, (8, 4, 4)),
        ("TPU v5p", 4, (2, 2)),
        ("NVIDIA H100", 16, (16,)),
    ],
)
def test_the_sides_of_a_pod(kind, devices, expected):
    platform = "gpu" if "NVIDIA" in kind else "tpu"
    device = AbstractDevice(device_kind=kind, num_cores=1, platform=platform)
    with on_mesh(AbstractMesh((1, devices, 1), MESH_AXES, (AxisType.Explicit,) * 3, abstract_device=device)):
        assert sides(devices) == expected


@pytest.mark.parametrize("devices", [2, 3, 4, 5, 8, 16])
def test_a_ring_visits_every_device_of_a_line_and_never_goes_far(devices):
    order = ring(devices)
    assert sorted(order) == list(range(devices))
    steps = [abs(one - other) for one, other in zip(order, [*order[1:], order[0]], strict=True)]
    assert max(min(step, devices - step if devices == 16 else step) for step in steps) == (
        1 if devices in (2, 16) else 2
    )


@pytest.mark.parametrize("rows", [16, 3])  # split over `tensor`, and whole
def test_one_row_is_looked_up_as_without_a_mesh(rows):
    mesh, look_up = make_mesh(1, 1, 8), jax.jit(embedding_lookup)
    table = np.random.default_rng(0).standard_normal((rows, 4), np.float32)
    table[0] = np.nan  # what other rows hold does not matter
    with on_mesh(mesh):
        split = jax.device_put(table, NamedSharding(mesh, spec("vocab" if rows == 16 else None, "embed")))
        for number in range(1, rows):
            row = look_up(split, constrain(jnp.full((1, 1), number), "batch"))
            np.testing.assert_array_equal(row[0, 0], table[number])
        gradient = jax.jit(
            jax.grad(lambda table: embedding_lookup(table, constrain(jnp.full((1, 1), 2), "batch")).sum())
        )
        np.testing.assert_array_equal(gradient(split), (np.arange(rows) == 2)[:, None] * np.ones(4))


def products():
    """Maps from `embed` and to it, small and large, over slices of two by two devices, four by two, and a cube."""
    weights = {
        "from embed": ((16, 4, 6), (0,), ("embed", "heads", None)),
        "to embed": ((4, 6, 16), (0, 1), ("heads", None, "embed")),
        "large, from embed": ((2048, 8, 128), (0,), ("embed", "heads", None)),
        "large, to embed": ((1024, 2048), (0,), ("mlp", "embed")),
    }
    slices = {"2 by 2": ((2, 4, 1), 2), "4 by 2": ((1, 8, 1), 2), "cube": ((1, 8, 1), 3)}
    default = set(zip(weights, ("2 by 2", "cube", "2 by 2", "4 by 2"), strict=True))
    return [
        pytest.param(
            *weights[one],
            *slices[other],
            marks=() if (one, other) in default else pytest.mark.slow,
            id=f"{one} over {other}",
        )
        for one, other in itertools.product(weights, slices)
    ]


@pytest.mark.parametrize(("shape", "contracted", "axes", "sizes", "dimensions"), products())
def test_gradients_that_are_added_up_side_by_side_are_those_of_one_device(
    monkeypatch, shape, contracted, axes, sizes, dimensions
):
    tokens = 128 if 2048 in shape else 3  # a weight larger than what it is multiplied with would stay
    x_shape = (8, tokens, *(shape[axis] for axis in contracted))
    x, weight = (jax.random.normal(jax.random.key(seed), size) for seed, size in enumerate((x_shape, shape)))
    output = [None if axis == "embed" else axis for axis in axes[len(contracted) :]]

    def loss(x, weight):
        return jnp.sum(jnp.sin(sharded_matmul(x, weight, contracted, *output)))

    expected = jax.grad(loss, (0, 1))(x, weight)
    if dimensions == 3:  # CPUs count as a TPU of two dimensions without SparseCores
        monkeypatch.setattr("idefics_jax.parallel.collectives.sides", lambda devices: (2, 2, 2))
        monkeypatch.setattr("idefics_jax.parallel.collectives.SPARSE_CORES", (jax.devices()[0].device_kind,))
    mesh = make_mesh(*sizes)
    with jax.set_mesh(mesh):
        placed = (
            jax.device_put(x, NamedSharding(mesh, spec("batch"))),
            jax.device_put(weight, NamedSharding(mesh, spec(*axes))),
        )
        traced = jax.jit(jax.grad(loss, (0, 1))).trace(*placed)
        gradients = traced.lower().compile()(*placed)
        text = traced.jaxpr.pretty_print()
    large = 2048 in shape and dimensions == 2
    # Along the shorter side, once for each half of the ring's sums.
    assert text.count("reduce_scatter[") == (2 if large else dimensions)
    assert text.count("ppermute[") == (2 if large else 0)
    assert text.count("all_gather[") == (6 if dimensions == 3 else 0)  # forward and backward
    assert gradients[1].sharding == placed[1].sharding
    for one, other in zip(gradients, expected, strict=True):
        atol = 1e-5 * (np.abs(other).max() if 2048 in shape else 1)  # sums of many more numbers
        np.testing.assert_allclose(one, other, atol=atol)


@pytest.mark.parametrize("axes", [("batch", None, None), ("batch", None, "mlp"), ("batch", "heads", None)])
def test_dropout_drops_the_same_on_every_mesh_that_splits_these_axes(axes):
    dropout = Dropout(0.3)
    dropout.key = jax.random.key(0)

    def dropped(mesh):
        with on_mesh(mesh):
            return np.asarray(jax.jit(lambda: dropout(constrain(jnp.ones((8, 4, 254)), *axes)))())

    np.testing.assert_array_equal(dropped(make_mesh(2, 2, 2)), dropped(make_mesh(1, 1, 1, devices=jax.devices()[:1])))


@pytest.mark.parametrize("shape", [(64, 301), (7, 64, 64)])
def test_dropout_keeps_its_share_and_the_mean(shape):
    dropout = Dropout(0.05)
    dropout.key = jax.random.key(0)
    x = np.asarray(dropout(jnp.ones(shape)))
    assert set(np.unique(x)) == {0, np.float32(1 / 0.95)}
    assert np.mean(x == 0) == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 / x.size))
    one, other = np.array_split(x == 0, 2, axis=-1)  # both halves of 32 bits are used
    assert np.any(one[..., : other.shape[-1]] != other)
