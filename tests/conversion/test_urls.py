"""Checkpoints in an object store: a real S3 server on this machine, from moto, reached by s3fs and TensorStore."""

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.conversion import as_bin, contents, run, start
from tests.support.random_checkpoint import save_random_checkpoint

pytestmark = pytest.mark.slow  # each command is a process, and the server takes its time
TENSORS = "141 tensors"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The environment that leads to the server, with a bucket of the name "bucket"."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (tmp_path_factory.mktemp("moto") / "log").open("w")
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None, log.name
                time.sleep(0.05)
        environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "MOTO_LOG": log.name,  # for a test to see what was asked of the server
        }
        s3(environment, "fs.mkdir('bucket')")
        yield environment
    finally:
        process.kill()
        process.wait()
        log.close()


def s3(environment, code):
    """Runs code with the server's file system as `fs`; gives what it printed, as JSON."""
    script = f"import json, fsspec; fs = fsspec.filesystem('s3'); print(json.dumps({code}))"
    output = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | environment, check=True, capture_output=True, text=True
    )
    return json.loads(output.stdout)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_random_checkpoint(tmp_path_factory.mktemp("source") / "checkpoint")


def test_there_from_there_and_back(server, source, tmp_path):
    before = contents(source)
    out = run("convert", source, "s3://bucket/orbax", **server)
    assert f"s3://bucket/orbax: {TENSORS}" in out
    assert "bit-identical" in run("verify", source, "s3://bucket/orbax", **server)
    assert "bit-identical" in run("verify", "s3://bucket/orbax", **server)
    run(
        "convert", "s3://bucket/orbax", "s3://bucket/files", "--to", "safetensors", "--max-shard-size", "50KB", **server
    )
    names = s3(server, "sorted(p.split('/')[-1] for p in fs.ls('bucket/files'))")
    assert "model.safetensors.index.json" in names
    assert "config.json" in names
    assert ".progress" not in names
    run("convert", "s3://bucket/files", tmp_path / "back", **server)
    assert "bit-identical" in run("verify", source, tmp_path / "back", **server)
    rows = run("inspect", "s3://bucket/files", **server).splitlines()
    assert rows[-1].split()[:2] == ["total", "141"]
    assert contents(source) == before


def test_bin_files_there(server, source, tmp_path):
    local = save_random_checkpoint(tmp_path / "bin")
    as_bin(local)
    s3(server, f"fs.put({str(local)!r}, 'bucket/bin', recursive=True)")
    run("convert", "s3://bucket/bin", tmp_path / "orbax", **server)
    assert "bit-identical" in run("verify", source, tmp_path / "orbax", **server)


def test_the_model_loads_from_there(server, source):
    run("convert", source, "s3://bucket/model", **server)
    code = (
        "import sys, jax, numpy as np; from idefics_jax import IdeficsForVisionText2Text as Model; "
        "jax.tree.map(np.testing.assert_array_equal, *map(Model.from_pretrained, sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, str(source), "s3://bucket/model"]
    subprocess.run(command, env=os.environ | server, check=True, capture_output=True)


def test_a_stopped_run_loads_nowhere_and_goes_on(server, source):
    """Killed while it writes: no config.json, so nothing loads it, until --resume has finished it."""
    command = ("convert", source, "s3://bucket/stopped", "--to", "safetensors")
    process = start(*command, "--max-shard-size", "4KB", **server)
    while "PUT /bucket/stopped/model-00003" not in Path(server["MOTO_LOG"]).read_text():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert "has no config.json" in run("inspect", "s3://bucket/stopped", status=1, **server)
    again = run(*command, status=1, **server)
    assert "is what a stopped run left; --resume goes on with it" in again
    run(*command, "--max-shard-size", "4KB", "--resume", **server)
    assert "bit-identical" in run("verify", source, "s3://bucket/stopped", **server)


def test_what_is_there_is_kept_unless_forced(server, source):
    run("convert", source, "s3://bucket/kept", **server)
    assert "exists already" in run("convert", source, "s3://bucket/kept", "--to", "safetensors", status=1, **server)
    run("convert", source, "s3://bucket/kept", "--to", "safetensors", "--force", **server)
    assert not s3(server, "fs.exists('bucket/kept/params')")
    assert "bit-identical" in run("verify", source, "s3://bucket/kept", **server)


def test_a_server_that_is_not_there(source, tmp_path):
    err = run(
        "inspect", "s3://bucket/x", status=1, AWS_ENDPOINT_URL="http://127.0.0.1:9", AWS_ACCESS_KEY_ID="k",
        AWS_SECRET_ACCESS_KEY="s", AWS_MAX_ATTEMPTS="1",
    )  # fmt: skip
    assert "Traceback" not in err
    assert "127.0.0.1:9" in err
