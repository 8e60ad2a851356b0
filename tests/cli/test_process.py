"""The programs as processes: their streams, their surroundings, and hosts that never come."""

import os
import signal
import subprocess
import sys
import time

import pytest

from idefics_jax.cli.chat import complete
from tests.support.train_runs import free_port

COMMAND = [sys.executable, "-m", "idefics_jax"]


def shell(script, **environment):
    done = subprocess.run(
        ["bash", "-c", script.replace("idefics-jax", " ".join(COMMAND))],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        cwd="/",
    )
    return done.returncode, done.stdout, done.stderr


def test_standard_output_that_is_closed_or_full():
    status, _, err = shell("idefics-jax demo >&-")
    assert (status, err) == (
        1,
        "idefics-jax: Standard output is closed, so nothing can be printed; redirect it to a file or to /dev/null.\n",
    )
    status, _, err = shell("idefics-jax generate --help >/dev/full")
    assert (status, err) == (
        1,
        "idefics-jax: The output cannot be written: the disk is full (No space left on device).\n",
    )


def test_standard_error_that_is_closed():
    assert shell("idefics-jax generate --question x --top-k 2 --num-beams 2 2>&-") == (1, "", "")


def test_a_terminal_of_no_width():
    status, out, err = shell("idefics-jax --help", COLUMNS="0", TERM="dumb", LC_ALL="C")
    assert (status, out.startswith("usage: idefics-jax"), err) == (0, True, "")


def test_an_interrupt_while_modules_are_imported():
    process = subprocess.Popen(
        [*COMMAND, "generate", "--prompt", "User:Hello."],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd="/",
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("Using the pocket model")
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "")


INTERRUPTED = """
import os, signal, sys

module = sys.argv.pop(1)
sys.addaudithook(lambda event, given: event == "import" and given[0] == module and os.kill(os.getpid(), signal.SIGINT))
from idefics_jax.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize("module", ["idefics_jax.cli", "idefics_jax.cli.errors", "argparse"])
def test_an_interrupt_before_options_are_read(module):
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, module, "--help"], capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


@pytest.mark.parametrize("index", [0, 1])
def test_hosts_that_never_come(index):
    where = f"127.0.0.1:{free_port()}"
    status, out, err = shell(
        f"idefics-jax generate --prompt x --mesh data=-1 --coordinator {where} --processes 2 --process {index} "
        "--coordinator-timeout 1"
    )
    awaited = "process 1" if index == 0 else f"process 0 at {where}"
    assert (status, out) == (1, "")
    assert f"Waiting for {awaited}" in err
    assert f"Waited 1 seconds for {awaited}" in err.splitlines()[-1]


def test_paths_are_completed_after_image(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a cat.png", "a dog.png", "b.png"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()

    def ways(line):
        return [way for way in (complete(line, number) for number in range(9)) if way is not None]

    assert ways("/image a") == ["/image a cat.png", "/image a dog.png"]
    assert ways("/image fo") == ["/image folder" + os.sep]
    assert ways("/im") == ["/image "]
    assert ways("a") == ways("/image nothing") == []
