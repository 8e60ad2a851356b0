"""A step that was compiled before is loaded instead of compiled, and is refused where it is another's."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from idefics_jax import IdeficsProcessor
from idefics_jax.cost.pods import pod_devices
from tests.support.small_runs import CONFIG, PROCESSOR
from tests.support.train_runs import Place
from train.cli import main, parse
from train.config import MeshConfig
from train.kept import load, save
from train.planning.compiling import lower
from train.starting import mesh_of, model_config

# Heads alone: their step has no backward pass, and is soon compiled.
MESHED = replace(CONFIG, out="nowhere", trainable="heads", batch_size=8, mesh=MeshConfig(fsdp=8))


@pytest.fixture(scope="module")
def lowered():
    return program(MESHED)


@pytest.fixture(scope="module")
def compiled(lowered):
    return anew(lowered)


def anew(lowered):
    """Compiled without JAX's cache: for CPUs, what comes from there cannot be written again."""
    compilation_cache.reset_cache()
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        return lowered.compile()
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
        compilation_cache.reset_cache()


def program(config):
    return lower(config, model_config(config), mesh_of(config), PROCESSOR)[0]


def test_a_kept_step_is_loaded_without_compiling(lowered, compiled, tmp_path):
    save(f"{tmp_path}/step", lowered, compiled)
    compilations = []

    def listen(name, *_, **__):
        if "backend_compile" in name:
            compilations.append(name)

    arguments = [
        jax.tree.map(
            lambda info, sharding: jax.device_put(np.ones(info.shape, info.dtype), sharding),
            lowered.args_info[0],
            compiled.input_shardings[0],
        )
        for _ in range(2)
    ]
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        loaded = load(f"{tmp_path}/step", lowered, jax.devices()[:8])
        ours = loaded(*arguments[0])
        assert not compilations
        assert jax.tree.all(
            jax.tree.map(lambda a, b: np.array_equal(a, b, equal_nan=True), ours, compiled(*arguments[1]))
        )
        jax.jit(lambda x: x * 2.5 + len(compilations))(np.ones(3))
        assert compilations, "this is how it shows"
    finally:
        jax.monitoring.clear_event_listeners()


def test_a_step_of_another_command_or_jax_is_refused(lowered, compiled, tmp_path):
    path = tmp_path / "step"
    save(str(path), lowered, compiled)
    with pytest.raises(ValueError, match="compiled for another command; make it again"):
        load(str(path), program(replace(MESHED, z_loss=0.5)), jax.devices())
    marks, _, content = path.read_bytes().partition(b"\n")
    path.write_bytes(json.dumps(json.loads(marks) | {"JAX": "0.1"}).encode() + b"\n" + content)
    with pytest.raises(ValueError, match="compiled for another JAX"):
        load(str(path), lowered, jax.devices())
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="is not a compiled step"):
        load(str(path), lowered, jax.devices())


@pytest.mark.slow
def test_a_run_with_a_kept_step_has_the_losses_of_one_without(tmp_path):
    place, meshed = Place(tmp_path), {"mesh__fsdp": 8}
    config = parse(place.options("kept", **meshed))
    processor = IdeficsProcessor.from_pretrained(place.model)
    lowered, _ = lower(config, model_config(config), mesh_of(config), processor)
    save(f"{tmp_path}/step", lowered, anew(lowered))
    place.run("kept", devices=8, compiled=tmp_path / "step", **meshed)
    place.run("compiled", devices=8, **meshed)
    np.testing.assert_allclose(place.losses("kept"), place.losses("compiled"), rtol=1e-5)
    printed = place.run("other", devices=8, status=1, compiled=tmp_path / "step", z_loss=0, **meshed)
    assert "was compiled for another command" in printed


@pytest.mark.slow
def test_a_plan_keeps_the_pod_s_step(tmp_path, capsys):
    pytest.importorskip("libtpu")
    place = Place(tmp_path)
    options = ["--plan", "v5e:2x4", "--compiled", f"{tmp_path}/step"]
    assert main([*place.options("plan", mesh__fsdp=8), *options]) == 0
    assert (tmp_path / "step").stat().st_size > 100_000
    config = parse([*place.options("plan", mesh__fsdp=8), *options])
    pod = mesh_of(config, pod_devices("v5e:2x4", 1))
    processor = IdeficsProcessor.from_pretrained(place.model)
    again, _ = lower(config, model_config(config), pod, processor)
    with pytest.raises(ValueError, match="cannot be loaded onto these devices"):  # there is no TPU
        load(f"{tmp_path}/step", again, jax.devices()[:8])
