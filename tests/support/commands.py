"""What the tests of the command line share."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from safetensors.numpy import load_file, save_file

from tests.support.train_runs import free_port

PROMPT = "User:<image>What differs from <image>?"
NEW_TOKENS = 12


def change_tensor(directory, name, change):
    """Writes a shard again with one tensor changed."""
    file = directory / json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"][name]
    tensors = load_file(file)
    tensors[name] = change(tensors[name])
    save_file(tensors, file, metadata={"format": "pt"})


def check_sentence(err, message):
    """All of standard error is one sentence about `message`, after the remark on the dtype."""
    *notes, sentence = err.splitlines()
    assert all(note.startswith("Computing in float32") for note in notes), err
    assert sentence.startswith("idefics-jax: ")
    assert len(sentence) > len("idefics-jax: ") + 20
    assert re.search(message, sentence), sentence


class Ended(NamedTuple):
    """What a process printed, and its status."""

    out: str
    err: str
    status: int


def two_processes(*arguments: object) -> list[Ended]:
    """`idefics-jax` in two processes of four devices each, started together."""
    command = [Path(sys.executable).parent / "idefics-jax", *arguments]
    where = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2"]
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    processes = [
        subprocess.Popen(
            [str(part) for part in (*command, *where, "--process", index)],
            env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        printed = [(*process.communicate(timeout=300), process.returncode) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [Ended(_own(out), err, status) for out, err, status in printed]


def _own(out: str) -> str:
    """Without what JAX's connections between processes on CPUs print, their lines in one another."""
    lines = out.splitlines(keepends=True)
    return "".join(line for line in lines if "[Gloo]" not in line and "peer ranks" not in line)
