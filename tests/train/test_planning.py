"""`--plan`: the step of a run, compiled for a pod by the TPU compiler, where that is installed."""

import json
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import NamedSharding, reshard

from idefics_jax import IdeficsConfig, IdeficsForVisionText2Text, make_mesh
from idefics_jax.checkpoints import hf_names
from idefics_jax.cost import CHIPS, analyze, chip
from idefics_jax.cost.hlo import arrays, parse
from idefics_jax.cost.pods import pod_devices
from idefics_jax.kernels.splash import segments
from idefics_jax.nn.decoder import DecoderLayer
from idefics_jax.nn.layers import GatedMLP
from idefics_jax.nn.rope import rotary_angles
from idefics_jax.nn.stack import init_layers, scan_layers
from idefics_jax.parallel.hardware import TRAINING, options
from idefics_jax.parallel.mesh import on_mesh, shapes_on, spec
from train.cli import main
from train.config import DataConfig, MeshConfig, TrainConfig
from train.planning.compiling import batch_shapes, lower, make_plan
from train.starting import abstract, mesh_of, model_config

CONFIG = TrainConfig(
    out="", random="tiny", batch_size=16, mesh=MeshConfig(fsdp=4, tensor=2), data=DataConfig(sequence_length=128)
)


@pytest.mark.parametrize("trainable", ["full", "idefics", "lora"])
def test_a_plan_makes_no_array(trainable):
    config = TrainConfig(**{**vars(CONFIG), "trainable": trainable})
    model = model_config(config)
    mesh = mesh_of(config)
    _, params, frozen = abstract(config, model, mesh)
    leaves = jax.tree.leaves((params, frozen, batch_shapes(config, model, mesh)))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding.mesh == mesh for leaf in leaves)
    assert bool(jax.tree.leaves(frozen)) is (trainable != "full")


@pytest.mark.parametrize(
    "trainable", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("full", "idefics")), "lora"]
)
def test_the_step_is_lowered_without_any_array(trainable):
    config = TrainConfig(**{**vars(CONFIG), "trainable": trainable})
    lowered, _ = lower(config, model_config(config), mesh_of(config))
    assert "stablehlo" in lowered.as_text()


def test_where_a_chip_has_few_tokens_it_gathers_more_at_a_time():
    gathers = "xla_max_concurrent_async_all_gathers"
    config = TrainConfig(out="", batch_size=64, accumulation=2, data=DataConfig(sequence_length=1024))
    assert config.tokens_at_a_time(16) == 2048
    assert options("v5e", 2048) == TRAINING["v5e"]
    assert options("v5e", 1024) == TRAINING["v5e"] | {gathers: "3"}
    assert options("v6e", 1024) == TRAINING["v6e"]
    assert options("", 1024) == {}  # no TPU


def test_without_the_compiler_one_sentence_says_what_to_install(capsys, monkeypatch, tmp_path):
    assert main(["--random", "tiny", "--out", str(tmp_path), "--plan", "nonsense:9"]) == 1
    printed = capsys.readouterr().err
    assert "nonsense" in printed
    assert "Traceback" not in printed


def test_a_single_chip_keeps_no_compiled_step(capsys, tmp_path):
    pytest.importorskip("libtpu")
    command = ["--random", "tiny", "--plan", "v5e:1x1", "--compiled", str(tmp_path / "step"), "--out", str(tmp_path)]
    assert main(command) == 1
    assert "leave it out" in capsys.readouterr().err


@pytest.mark.slow
def test_a_single_chip_is_planned_for_itself(capsys, tmp_path):
    pytest.importorskip("libtpu")
    command = ["--random", "tiny", "--plan", "v5e:1x1", "--out", str(tmp_path), "--trainable", "heads"]
    assert main([*command, "--data.sequence-length", "128", "--data.max-images", "1", "--batch-size", "1"]) == 0
    assert "| fits | yes" in capsys.readouterr().out
    assert json.loads((tmp_path / "plan" / "v5e-1x1.json").read_text())["devices"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("slices", [1, 2])
def test_a_plan_says_whether_it_fits_and_how_long_a_step_takes(slices, capsys, tmp_path):
    pytest.importorskip("libtpu")
    options = ["--random", "tiny", "--out", str(tmp_path), "--plan", "v5e:2x4", "--slices", str(slices)]
    options += ["--mesh.data", str(slices), "--mesh.fsdp", "-1", "--batch-size", "16", "--trainable", "full"]
    assert main([*options, "--data.sequence-length", "256", "--data.max-images", "1"]) == 0
    assert "| fits | yes" in capsys.readouterr().out
    found = json.loads((tmp_path / "plan" / "v5e-2x4.json").read_text())
    assert found["devices"] == 8 * slices
    assert 0 < found["mfu"] < 1
    assert found["seconds_by_component"]["optimizer"] > 0
    picture = ElementTree.parse(tmp_path / "plan" / "v5e-2x4.svg").getroot()
    assert any("optimizer" in (text.text or "") for text in picture.iter("{http://www.w3.org/2000/svg}text"))


@pytest.mark.slow
def test_nothing_but_what_is_rematerialised_is_computed_twice(tmp_path):
    pytest.importorskip("libtpu")
    config = TrainConfig(**{**vars(CONFIG), "trainable": "full", "plan": "v5e:2x4", "mesh": MeshConfig()})
    plan = make_plan(config)
    assert 1 < plan.cost.matmul_flops / plan.model_flops < 1.6


@pytest.mark.slow
def test_a_program_that_is_too_large_says_by_how_much(capsys, tmp_path):
    pytest.importorskip("libtpu")
    options = ["--random", "tiny", "--out", str(tmp_path), "--plan", "v5e:2x2", "--batch-size", str(2**20)]
    assert main([*options, "--trainable", "full"]) == 1
    printed = capsys.readouterr().out
    assert "does not fit" in printed
    assert "15.75G" in printed


@pytest.fixture(scope="module")
def step_of_a_pod():
    """The compiled step's text, where eight chips share every weight, and the stacked model's shapes."""
    pytest.importorskip("libtpu")
    config = TrainConfig(**{**vars(CONFIG), "trainable": "full", "mesh": MeshConfig(fsdp=8)})
    model = model_config(config)
    lowered, _ = lower(config, model, mesh_of(config, pod_devices("v5e:2x4", 1)))
    text = lowered.compile(compiler_options=TRAINING["v5e"]).as_text()
    return text, IdeficsForVisionText2Text.abstract(model, stacked=True)


@pytest.mark.slow
def test_devices_exchange_weights_and_gradients_and_nothing_else(step_of_a_pod):
    """Weights are gathered for the forward pass, again for the recomputed one, and for the gradients; gradients are
    added up once; in two bytes each. Were activations exchanged, it would be more, or all-to-all."""
    text, model = step_of_a_pod
    sent: dict[str, float] = {}
    for each in analyze(text, CHIPS["v5e"], 8).collectives:
        sent[each.kind] = sent.get(each.kind, 0) + each.wire_bytes
    weights = sum(leaf.size for leaf in jax.tree.leaves(model))
    assert set(sent) <= {"all-gather", "reduce-scatter", "all-reduce", "collective-permute"}
    assert sent["all-gather"] < 3 * 2 * weights
    assert sent["reduce-scatter"] + sent["all-reduce"] < 3 * weights  # 2 if all are scattered, 4 if none
    assert sent.get("collective-permute", 0) < 0.1 * weights  # weights that small are not added up round rings


@pytest.mark.slow
def test_no_device_has_all_of_a_stack_of_layers(step_of_a_pod):
    text, model = step_of_a_pod
    program = parse(text)
    there = {
        tuple(array.dims)
        for computation in program.computations.values()
        for instruction in computation.instructions
        for array in arrays(instruction.shape)
    }
    stacks = {
        hf_names.path_of(keys): leaf.shape
        for keys, leaf in jax.tree_util.tree_leaves_with_path(model)
        if "/layers/" in hf_names.path_of(keys) and hf_names.path_of(keys).endswith("kernel")
    }
    assert len(stacks) > 15
    assert [path for path, shape in stacks.items() if tuple(shape) in there] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("topology", "kinds", "share"),
    [
        ("v5p:2x2x2", {"all-gather", "reduce-scatter"}, 0.98),
        # Nine minutes of one core; v5p's SparseCores do the same.
        pytest.param("v6e:4x4", {"all-gather", "reduce-scatter"}, 0.98, marks=pytest.mark.soak),
        pytest.param("v5e:4x4", {"all-gather", "collective-permute"}, 0.7, marks=pytest.mark.soak),
        ("v5e:16x16", {"all-gather", "collective-permute"}, 0.7),
    ],
)
def test_weights_and_gradients_are_exchanged_while_chips_compute(topology, kinds, share):
    """By SparseCores, or beside products; without SparseCores, the weights of a layer's first product and sums over a
    grid's shorter side are waited for."""
    pytest.importorskip("libtpu")
    which, mesh = chip(topology), make_mesh(devices=pod_devices(topology, 1))
    layers = shapes_on(mesh, lambda key: nnx.state(_mlps(key)), jax.random.key(0))
    graph = nnx.graphdef(nnx.eval_shape(lambda: _mlps(jax.random.key(0))))

    def loss(layers, x):
        body = lambda x, layer: (x + layer(x), ())  # noqa: E731
        return jnp.sum(scan_layers(body, x, nnx.merge(graph, layers), remat="full")[0])

    with on_mesh(mesh.abstract_mesh):
        layout = NamedSharding(mesh, spec("batch", None, None))
        x = jax.ShapeDtypeStruct((2 * mesh.size, 1024, 8192), jnp.bfloat16, sharding=layout)
        program = jax.jit(jax.grad(loss)).lower(layers, x).compile(compiler_options=TRAINING[which.name])
    collectives = analyze(program.as_text(), which, mesh.size).collectives
    hidden = sum(each.wire_bytes for each in collectives if not each.synchronous)
    assert hidden > share * sum(each.wire_bytes for each in collectives)
    assert {each.kind for each in collectives if not each.synchronous} == kinds


def _mlps(key):
    return init_layers(lambda key: GatedMLP(key, 8192, 2816, "silu", std=0.02), key, 4, stacked=True)


@pytest.mark.slow
def test_frozen_weights_of_all_layers_are_not_turned_round_at_once():
    """A layer's are, in its turn: the compiler likes heads first."""
    pytest.importorskip("libtpu")
    mesh = make_mesh(devices=pod_devices("v5e:2x2", 1))
    config = IdeficsConfig(hidden_size=1024, num_attention_heads=8, intermediate_size=1024)

    def layers(key):
        return init_layers(lambda key: DecoderLayer(config, key), key, 8, stacked=True)

    def loss(x, state):
        positions = reshard(jnp.broadcast_to(jnp.arange(1024), x.shape[:2]), spec("batch"))
        rope, mask = rotary_angles(positions, 128, 1e4), segments(positions >= 0, None)
        body = lambda x, layer: (layer(x, rope, mask, None)[0], ())  # noqa: E731
        return jnp.sum(scan_layers(body, x, nnx.merge(graph, state), remat="full")[0])

    graph = nnx.graphdef(nnx.eval_shape(lambda: layers(jax.random.key(0))))
    state = shapes_on(mesh, lambda key: nnx.state(layers(key)), jax.random.key(0))
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=x.sharding), state)
    with on_mesh(mesh.abstract_mesh):
        x = jax.ShapeDtypeStruct((4, 1024, 1024), jnp.bfloat16, sharding=NamedSharding(mesh, spec("batch", None, None)))
        program = jax.jit(jax.grad(loss)).lower(x, state).compile(compiler_options=TRAINING["v5e"])
    copied = [
        array.dims
        for computation in parse(program.as_text()).computations.values()
        for instruction in computation.instructions
        if instruction.opcode == "copy"
        for array in arrays(instruction.shape)
    ]
    assert (8, 256, 8, 128) not in copied
