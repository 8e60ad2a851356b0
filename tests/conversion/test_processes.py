"""Two processes of `jax.distributed` convert together, each its part; and what they wrote is restored by two."""

import json
import os
import socket
import subprocess
import sys
from contextlib import closing

import pytest

from conversion.targets import DATABASES
from tests.support.conversion import assert_same_bits, converted, read_all, run, start
from tests.support.random_checkpoint import save_random_checkpoint


def free_port():
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def together(*arguments, count=2, environments=({}, {}), status=(0, 0)):
    """Runs the command in two processes; gives what each printed, to standard output and to standard error."""
    several = ["--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", count]
    processes = [start(*arguments, *several, "--process-id", number, **environments[number]) for number in range(count)]
    try:
        printed = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert tuple(process.returncode for process in processes) == status, printed
    return printed


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """0.4 MB in several files."""
    source = save_random_checkpoint(tmp_path_factory.mktemp("source") / "one")
    return converted(source, source.parent / "source", "--to", "safetensors", "--max-shard-size", "50KB")


def assert_whole(out, source):
    """The same weights, and a manifest of those that either process wrote."""
    tensors = read_all(source)
    assert_same_bits(read_all(out), tensors)
    assert json.loads((out / "manifest.json").read_text())["tensors"].keys() == tensors.keys()


RESTORE = """
import sys, jax, numpy as np, orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from idefics_jax import IdeficsForVisionText2Text as Model, make_mesh
from tests.conversion.test_convert import nested
mesh = make_mesh(1, 2, 2)
expected = Model.from_pretrained(sys.argv[3], mesh=mesh, stacked=True)
abstract = nested(Model.abstract(expected.config, mesh=mesh, stacked=True))
with ocp.StandardCheckpointer() as checkpointer:
    restored = checkpointer.restore(sys.argv[4] + "/params", abstract)
ours = nested(Model.from_pretrained(sys.argv[4], mesh=mesh, stacked=True))
for a, b, c in zip(*map(jax.tree.leaves, (nested(expected), restored, ours)), strict=True):
    assert len(a.addressable_shards) == 2
    for shards in zip(a.addressable_shards, b.addressable_shards, c.addressable_shards, strict=True):
        for other in shards[1:]:
            np.testing.assert_array_equal(shards[0].data, other.data)
print("same")
"""


@pytest.mark.slow
def test_orbax_by_two_restored_by_two(large, tmp_path):
    (out, err), (other, _) = together("convert", large, tmp_path / "out")
    assert "out: 203 tensors" in out, err
    assert "tensors" not in other, "only the first process reports"
    databases = {
        int(path.name.rpartition("_")[2]) // DATABASES for path in (tmp_path / "out" / "params").glob("ocdbt.*")
    }
    assert databases == {0, 1}, "each wrote some"
    assert "bit-identical" in run("verify", large, tmp_path / "out")
    assert "bit-identical" in run("verify", tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    address = f"127.0.0.1:{free_port()}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RESTORE, address, str(number), str(large), str(tmp_path / "out")],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in range(2)
    ]  # fmt: skip
    for process in processes:
        out, err = process.communicate(timeout=180)
        assert out.endswith("same\n"), err  # JAX's own library prints before it


@pytest.mark.slow
def test_safetensors_by_two(source, tmp_path):
    together("convert", source, tmp_path / "out", "--to", "safetensors", "--max-shard-size", "30KB")
    assert_whole(tmp_path / "out", source)


def test_a_process_with_nothing_to_do(source, tmp_path):
    """All of a small checkpoint is one unit, the first process's or the second's."""
    together("convert", source, tmp_path / "out")
    assert_same_bits(read_all(tmp_path / "out"), read_all(source))


def test_the_failure_of_one_is_that_of_both(source, tmp_path):
    """The second process may write no file past some bytes."""
    script = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    script += "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))"
    (tmp_path / "limit").mkdir()
    (tmp_path / "limit" / "sitecustomize.py").write_text(script)
    command = ["convert", source, tmp_path / "out", "--to", "safetensors", "--max-shard-size", "30KB"]
    limited = {"PYTHONPATH": str(tmp_path / "limit"), "JAX_ENABLE_COMPILATION_CACHE": "0"}
    (_, first), (_, second) = together(*command, environments=({}, limited), status=(1, 1))
    assert "Process 1 failed, and says why" in first
    assert "File too large" in second
    assert not (tmp_path / "out").exists()
    done = {path.stem for path in (tmp_path / "out.partial" / ".progress").iterdir()} - {"job"}
    assert done, "what the first process wrote is kept"
    together(*command, "--resume")
    assert_whole(tmp_path / "out", source)


def test_options_that_do_not_go_together(conversion, source, tmp_path):
    command = ["convert", source, tmp_path / "out"]
    assert "--num-processes and --process-id need --coordinator" in conversion(*command, "--num-processes", 2, status=1)
    several = ["--coordinator", "127.0.0.1:1", "--num-processes", 2, "--process-id", 2]
    assert "--process-id is 2; it counts from 0 to 1" in conversion(*command, *several, status=1)
    assert not (tmp_path / "out").exists()
