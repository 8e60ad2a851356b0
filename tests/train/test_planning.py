"""`--plan`: the step of a run, compiled for a pod by the TPU compiler, where that is installed."""

import json
from xml.etree import ElementTree

import jax
import pytest

from train.cli import main
from train.config import DataConfig, MeshConfig, TrainConfig
from train.planning.compiling import batch_shapes, lower, make_plan
from train.starting import abstract, mesh_of, model_config

CONFIG = TrainConfig(
    out="", random="tiny", batch_size=16, mesh=MeshConfig(fsdp=4, tensor=2), data=DataConfig(sequence_length=128)
)


@pytest.mark.parametrize("trainable", ["full", "idefics", "lora"])
def test_the_step_is_lowered_without_any_array(trainable):
    config = TrainConfig(**{**vars(CONFIG), "trainable": trainable})
    model = model_config(config)
    mesh = mesh_of(config)
    _, params, frozen = abstract(config, model, mesh)
    leaves = jax.tree.leaves((params, frozen, batch_shapes(config, model, mesh)))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding.mesh == mesh for leaf in leaves)
    assert bool(jax.tree.leaves(frozen)) is (trainable != "full")
    lowered, _ = lower(config, model, mesh)
    assert "stablehlo" in lowered.as_text()


def test_without_the_compiler_one_sentence_says_what_to_install(capsys, monkeypatch, tmp_path):
    assert main(["--random", "tiny", "--out", str(tmp_path), "--plan", "nonsense:9"]) == 1
    printed = capsys.readouterr().err
    assert "nonsense" in printed
    assert "Traceback" not in printed


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
