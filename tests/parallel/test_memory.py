"""What needs more memory than is free is refused before it is loaded, and nothing that fits is."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from idefics_jax import POCKET, IdeficsConfig, IdeficsForVisionText2Text, make_mesh
from idefics_jax.checkpoints import hf_names
from idefics_jax.checkpoints.safetensors_io import make_header
from idefics_jax.cli import main
from idefics_jax.generation.context import least_request
from idefics_jax.parallel.memory import (
    CPU_WIDENS_WEIGHTS,
    FREE_GB,
    Request,
    bytes_of,
    check_memory,
    machine_memory,
    program_needs,
    request_needs,
    weight_needs,
)
from idefics_jax.planning.lowering import lower
from tests.support.random_checkpoint import save_random_checkpoint
from train.config import TrainConfig
from train.starting import check_step_fits


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


MEMINFO = {"proc/meminfo": "MemTotal:       32000000 kB\nMemFree:  1000 kB\nMemAvailable:   20000000 kB\n"}
V2 = {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/memory.max": "8000000000\n"}
V2 |= {"sys/fs/cgroup/a/memory.current": "3000000000\n", "sys/fs/cgroup/a/b/memory.max": "max\n"}
V2 |= {"sys/fs/cgroup/a/b/memory.current": "2000000000\n"}
V1 = {"proc/self/cgroup": "9:cpu,memory:/pod\n3:cpuset:/\n0::/\n"}
V1 |= {"sys/fs/cgroup/memory/memory.limit_in_bytes": "6000000000", "sys/fs/cgroup/memory/memory.usage_in_bytes": "9"}


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, None),
        (MEMINFO, 20480000000),
        ({"proc/meminfo": "MemFree: 1000 kB\n"}, None),
        (MEMINFO | V2, 5000000000),
        (
            MEMINFO | V2 | {"sys/fs/cgroup/a/memory.stat": "active_file 1\ninactive_file 9\n"},
            5000000010,
        ),
        (MEMINFO | V2 | {"sys/fs/cgroup/a/memory.max": "40000000000"}, 20480000000),
        (MEMINFO | V2 | {"sys/fs/cgroup/a/memory.current": "9000000000"}, 0),
        (MEMINFO | V1, 5999999991),
        (MEMINFO | V1 | {"sys/fs/cgroup/memory/memory.stat": "inactive_file 7\ntotal_inactive_file 4\n"}, 5999999995),
        (MEMINFO | V1 | {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712"}, 20480000000),
    ],
    ids=[
        "nothing",
        "machine",
        "old kernel",
        "v2",
        "v2 cached",
        "v2 wide",
        "v2 over",
        "v1",
        "v1 cached",
        "v1 unlimited",
    ],
)
def test_free_memory_is_the_least_of_the_machine_and_its_control_groups(tmp_path, files, free):
    write(tmp_path, files)
    assert machine_memory(tmp_path) == free


def test_this_machine_has_some():
    assert machine_memory() > 2**28


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A checkpoint of the 9B whose weights are holes: headers of the true sizes, and no data."""
    directory = tmp_path_factory.mktemp("large") / "idefics-9b"
    shutil.copytree(POCKET, directory, ignore=shutil.ignore_patterns("model.safetensors", "config.json"))
    config = IdeficsConfig.idefics_9b_instruct()
    config.save_pretrained(directory)
    shapes = IdeficsForVisionText2Text.abstract(config, param_dtype="bfloat16", stacked=True)
    kinds = {str(n): (np.dtype("bfloat16"), w.shape) for w in hf_names.weights(shapes, config) for n in w.names.flat}
    header = make_header(kinds)
    with (directory / "model.safetensors").open("wb") as file:
        file.write(header)
        file.truncate(len(header) + 2 * 8_929_687_824)
    return directory


def refused(capsys, command, *parts, status=1):
    assert main([str(part) for part in command]) == status
    sentence = capsys.readouterr().err.splitlines()[-1]
    for part in parts:
        assert part in sentence
    return sentence


QUESTION = ("--question", "What is this?")


def test_the_9b_is_refused_on_24_gb_before_a_weight_is_read(large, capsys, monkeypatch):
    monkeypatch.setenv(FREE_GB, "24")
    parts = ("needs 36.1 GB of memory", "35.7 GB for weights in float32", "24.0 GB are free", "a machine with more")
    refused(capsys, ["generate", "--model", large, *QUESTION], *parts)
    monkeypatch.setenv(FREE_GB, "17")
    with pytest.raises(ValueError, match=r"idefics-9b needs 17.9 GB of memory .* 17.0 GB are free"):
        IdeficsForVisionText2Text.from_pretrained(large, stacked=True)


def test_a_9b_on_a_cpu_needs_what_readme_says():
    def needed(dtype):
        config = dataclasses.replace(IdeficsConfig.idefics_9b_instruct(), dtype=dtype)
        shapes = IdeficsForVisionText2Text.abstract(config, param_dtype=dtype, stacked=True)
        return sum((weight_needs(shapes) | request_needs(shapes, None, least_request(config))).values()) / 1e9

    assert needed("float32") == pytest.approx(36, abs=0.2)
    assert needed("bfloat16") == needed("float16") == pytest.approx(50 if CPU_WIDENS_WEIGHTS else 18, abs=1)


def test_random_weights_that_do_not_fit_are_not_made(monkeypatch):
    monkeypatch.setenv(FREE_GB, "100")
    with pytest.raises(ValueError, match=r"needs 319.9 GB of memory .* 100.0 GB are free"):
        IdeficsForVisionText2Text.from_config(IdeficsConfig.idefics_80b(), jax.random.key(0), stacked=True)
    options = {"stacked": True, "param_dtype": "bfloat16", "mesh": make_mesh(data=8, fsdp=1)}
    with pytest.raises(ValueError, match=r"needs 1,279.5 GB"):  # a copy on each of eight devices
        IdeficsForVisionText2Text.from_config(IdeficsConfig.idefics_80b(), jax.random.key(0), **options)


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        (("generate", *QUESTION), ("weights in float32",)),
        (("generate", *QUESTION, "--num-beams", "200"), ("caches of 200 rows", "ask for fewer beams")),
        (("chat",), ("weights in float32", "13.4 MB")),
        (("demo",), ("weights in float32",)),
    ],
    ids=str,
)
def test_each_command_says_what_its_work_needs(command, parts, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv(FREE_GB, "0.01")
    shutil.copytree(POCKET, tmp_path / "model")
    refused(capsys, [*command, "--model", tmp_path / "model"], "10.0 MB are free", *parts)


def test_an_evaluation_says_what_its_batches_need(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv(FREE_GB, "0.5")
    (tmp_path / "data.jsonl").write_text('{"question": "What is this?", "answer": "a ball"}\n' * 64)
    command = ["eval", "jsonl", "--data", tmp_path / "data.jsonl", "--out", tmp_path / "out", "--zero-shot", "none"]
    refused(capsys, [*command, "--batch-size", "64", "--num-beams", "40"], "caches of 2,560 rows")


@pytest.mark.parametrize("text", ["much", "-1", "nan", ""])
def test_the_variable_is_a_number(text, monkeypatch):
    monkeypatch.setenv(FREE_GB, text)
    with pytest.raises(ValueError, match=f"{FREE_GB} must be a number of gigabytes"):
        check_memory("It", {"weights": 1})


def test_what_just_fits_is_loaded(tmp_path, monkeypatch):
    directory = save_random_checkpoint(tmp_path)
    config = IdeficsConfig.from_pretrained(directory)
    size = bytes_of(IdeficsForVisionText2Text.abstract(config, param_dtype="float32"))
    monkeypatch.setenv(FREE_GB, str((size - 1) / 1e9))
    with pytest.raises(ValueError, match=r"needs 0\.\d MB"):
        IdeficsForVisionText2Text.from_pretrained(directory)
    monkeypatch.setenv(FREE_GB, str((size + 1) / 1e9))
    model = IdeficsForVisionText2Text.from_pretrained(directory)
    assert bytes_of(model) == size == sum(weight_needs(model).values())
    with pytest.raises(ValueError, match=r"This call of generate needs .* for caches of 64 rows"):
        model.generate(input_ids=np.full((1, 3), 5), num_beams=64)
    monkeypatch.setenv(FREE_GB, "inf")
    assert model.generate(input_ids=np.full((1, 3), 5), max_new_tokens=1).shape == (1, 4)


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
def test_the_estimate_is_at_most_what_the_compiler_says(dtype):
    """Of weights wide enough that small temporary values do not matter; and at least half of it."""
    tiny = IdeficsConfig.tiny()
    config = dataclasses.replace(
        tiny,
        num_hidden_layers=1,
        cross_layer_interval=1,
        hidden_size=256,
        intermediate_size=1024,
        vision_config=dataclasses.replace(tiny.vision_config, num_hidden_layers=1),
        perceiver_config=dataclasses.replace(tiny.perceiver_config, resampler_depth=1),
        dtype=dtype,
    )
    rows, tokens = 4, 100
    inputs = {
        "input_ids": np.full((rows, tokens), 5, np.int32),
        "pixel_values": np.zeros((rows, 1, 28, 28, 3), np.float32),
        "image_attention_mask": np.ones((rows, tokens, 1), np.int32),
    }
    mesh = make_mesh(devices=jax.devices()[:1])
    call = lower(config, mesh, inputs, max_new_tokens=20, do_sample=False)
    most = 0
    for program in call.programs:
        found = program.lowered.compile().memory_analysis()
        used = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
        most = max(most, used + found.temp_size_in_bytes + program.unused_bytes)
    shapes = IdeficsForVisionText2Text.abstract(config, param_dtype=dtype)
    latents = config.perceiver_config.resampler_n_latents
    needs = weight_needs(shapes) | request_needs(shapes, None, Request(rows, rows, 128, call.slots, 8 * latents))
    assert most / 2 <= sum(needs.values()) <= most
    widened = any("float32 copies" in purpose for purpose in needs)
    assert widened == (dtype == "bfloat16" and CPU_WIDENS_WEIGHTS)


def test_training_says_what_weights_state_and_gradients_need(tmp_path, capsys, monkeypatch):
    from train.cli import main as train

    monkeypatch.setenv(FREE_GB, "100")
    (tmp_path / "data.jsonl").write_text(json.dumps({"text": "A ball."}) + "\n")
    command = ["--random", "80b", "--model", POCKET, "--out", tmp_path / "run", "--data.train", tmp_path / "data.jsonl"]
    assert train([str(part) for part in [*command, "--trainable", "full", "--batch-size", "8"]]) == 1
    sentence = capsys.readouterr().err.splitlines()[-1]
    for part in (
        "--trainable full needs 1,279.8 GB",
        "weights that train",
        "the optimizer's state",
        "gradients",
        "100.0 GB are free",
    ):
        assert part in sentence


def test_a_compiled_step_is_weighed(monkeypatch):
    program = jax.jit(lambda x: (x @ x) @ x).lower(np.ones((1000, 1000), np.float32)).compile()
    config = TrainConfig(out="", trainable="full", batch_size=8, accumulation=2, remat="none")
    monkeypatch.setenv(FREE_GB, "0.0079")  # the first product, and the second
    with pytest.raises(
        ValueError, match=r"step needs 8.0 MB .*\(--accumulation\), or give --remat full, or give --trainable lora"
    ):
        check_step_fits(config, program, None)
    monkeypatch.setenv(FREE_GB, "0.0081")
    check_step_fits(config, program, None)


@pytest.mark.slow
def test_a_training_step_that_does_not_fit_is_refused_before_it_runs(tmp_path, capsys, monkeypatch):
    """Where weights, optimizer state and gradients alone would."""
    from tests.support.make_checkpoint import make_checkpoint
    from train.cli import main as train

    monkeypatch.setenv(FREE_GB, "0.02")
    (tmp_path / "data.jsonl").write_text(json.dumps({"text": "A ball."}) + "\n")
    options = {
        "model": make_checkpoint(tmp_path / "model"),
        "out": tmp_path / "run",
        "data.train": tmp_path / "data.jsonl",
    }
    options |= {
        "trainable": "full",
        "steps": 1,
        "batch-size": 16,
        "mesh.fsdp": 8,
        "data.sequence-length": 64,
        "remat": "none",
    }
    assert train([str(part) for name, value in options.items() for part in (f"--{name}", value)]) == 1
    sentence = capsys.readouterr().err.splitlines()[-1]
    for part in (
        "A training step needs ",
        "GB for temporary values), and 20.0 MB are free on this machine",
        "; work on fewer rows at a time (--accumulation), or give --remat full, or give --trainable lora, or use a ",
    ):
        assert part in sentence
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_step_needs_what_the_compiler_says_on_each_device():
    devices = jax.devices()[:4]
    mesh = make_mesh(1, 4, 1, devices=devices)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp")))
    x = jax.ShapeDtypeStruct((4, 1000, 1000), np.float32, sharding=sharding)

    def step(x):
        y = x @ x
        return y @ y

    kept, donated = (jax.jit(step, donate_argnums=numbers).lower(x).compile() for numbers in ((), 0))
    assert sum(program_needs(kept, mesh).values()) == pytest.approx(4 * 8e6, rel=0.3)
    assert sum(program_needs(donated, mesh).values()) == pytest.approx(4 * 4e6, rel=0.3)
