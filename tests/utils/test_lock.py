"""One run per output directory."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from upath import UPath

from idefics_jax.utils import lock
from idefics_jax.utils.lock import LOCK, locked

HOLDER = """
import sys, time
from idefics_jax.utils.lock import locked
with locked(sys.argv[1], "train"):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(directory):
    """Another process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(directory)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_another_process_is_named_and_its_death_frees_the_directory(tmp_path):
    process = holder(tmp_path / "run")
    try:
        said = rf"run is in use by train, process {process.pid} on \S+, since .*kill"
        with pytest.raises(RuntimeError, match=said), locked(tmp_path / "run", "eval"):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert (tmp_path / "run" / LOCK).is_file(), "a killed owner leaves the file"
    with locked(tmp_path / "run", "eval"):
        assert json.loads((tmp_path / "run" / LOCK).read_text())["pid"] == os.getpid()
    assert not any((tmp_path / "run").iterdir())


def test_one_process_cannot_hold_it_twice(tmp_path):
    with locked(tmp_path, "train"):
        with pytest.raises(RuntimeError, match="in use by train"), locked(tmp_path, "train"):
            pass
        with locked(tmp_path / "other", "train"), locked(tmp_path, "convert", tmp_path / ".other.lock"):
            pass


def test_it_is_free_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path, "train"):
        raise ZeroDivisionError
    with locked(tmp_path, "train"):
        pass


def test_a_directory_that_goes_away_meanwhile(tmp_path):
    with locked(tmp_path / "partial", "convert"):
        (tmp_path / "partial").rename(tmp_path / "out")


def test_what_is_no_lock_is_not_followed(tmp_path):
    (tmp_path / LOCK).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="lock"), locked(tmp_path, "train"):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_many_at_once_and_one_gets_it(tmp_path):
    results, barrier = [], threading.Barrier(8)

    def take():
        barrier.wait()
        try:
            with locked(tmp_path, "train"):
                results.append("held")
                ended.wait(10)
        except RuntimeError:
            results.append("refused")

    ended = threading.Event()
    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    while len(results) < 8:
        time.sleep(0.01)
    ended.set()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["held"] + ["refused"] * 7


@pytest.fixture
def store(monkeypatch):
    """An object store in this process's memory, with beats of a tenth of a second."""
    monkeypatch.setattr(lock, "BEAT", 0.1)
    monkeypatch.setattr(lock, "SETTLE", 0.02)
    path = UPath("memory://bucket/run")
    yield path
    path.fs.rm(path.path, recursive=True)


def test_an_object_store_has_a_lock_that_is_rewritten(store):
    with locked(store, "train"):
        first = (store / LOCK).read_bytes()
        said = r"memory://bucket/run is in use by train, process \d+"
        with pytest.raises(RuntimeError, match=said), locked(store, "train"):
            pass
        time.sleep(0.25)
        assert (store / LOCK).read_bytes() != first
    assert not (store / LOCK).exists()


@pytest.mark.parametrize("content", [b'{"program": "train", "host": "elsewhere", "pid": 1}', b"", b"[1]"])
def test_a_lock_that_nobody_rewrites_is_taken_over(store, content, caplog):
    (store / LOCK).write_bytes(content)
    with locked(store, "train"):
        assert json.loads((store / LOCK).read_bytes())["pid"] == os.getpid()
    assert re.search("is locked; waiting", caplog.text)


def test_a_dead_process_of_this_host_is_not_waited_for(store, caplog):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    owner = {"program": "train", "host": lock.socket.gethostname(), "pid": process.pid, "since": "then"}
    (store / LOCK).write_bytes(json.dumps(owner).encode())
    with locked(store, "train"):
        pass
    assert not caplog.text
