"""Processes that meet: all go on, or each says which number two of them share."""

import os
import socket
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from idefics_jax.cli.roll_call import Process, answer_roll, call_roll, serve
from tests.support.train_runs import free_port

NAMES = ("--coordinator", "--processes", "--process")
TWICE = "Two processes were started with --process {}; give each of the 3 a number of its own, from 0 to 2."


@pytest.fixture
def address():
    return f"127.0.0.1:{free_port()}"


def meeting(*calls):
    """Makes all calls at once; returns "" for each that came back, or its error."""
    found = [None] * len(calls)

    def make(number, call):
        try:
            call()
            found[number] = ""
        except ValueError as error:
            found[number] = str(error)

    threads = [threading.Thread(target=make, args=each, daemon=True) for each in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return found


def first(address, count=3):
    process = Process(address, count, 0, NAMES)
    return partial(call_roll, serve(process), process)


def other(address, index, count=3):
    return partial(answer_roll, Process(address, count, index, NAMES))


def test_all_go_on_and_leave_the_port(address):
    for _ in range(2):
        assert meeting(other(address, 2), other(address, 1), first(address)) == ["", "", ""]
    assert meeting(first(address, 1)) == [""]


def test_a_number_twice(address):
    assert meeting(first(address), other(address, 1), other(address, 1)) == [TWICE.format(1)] * 3


def test_the_first_number_twice(address):
    """The other one finds the port taken here, or has one of its own on another host."""
    assert meeting(first(address), lambda: first(address)()) == [TWICE.format(0)] * 2
    elsewhere = serve(Process(f"127.0.0.1:{free_port()}", 3, 0, NAMES))
    assert (
        meeting(first(address), partial(call_roll, elsewhere, Process(address, 3, 0, NAMES))) == [TWICE.format(0)] * 2
    )


def test_other_counts(address):
    message = "Process 3 was started with --processes 4, and process 0 with 2; give one number."
    assert meeting(first(address, 2), other(address, 3, 4)) == [message] * 2


def test_who_has_gone_may_come_again_and_strangers_are_passed_over(address):
    host, port = address.split(":")
    call = first(address)
    for said in (b"idefics-jax 1 3 gone\n", b"idefics-jax 1 3 gone\n", b"GET / HTTP/1.1\r\n\r\n", b"", b"\xff" * 1000):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(said)
    assert meeting(call, other(address, 1), other(address, 2)) == ["", "", ""]


def test_a_port_of_another_program(address):
    with socket.create_server(("127.0.0.1", int(address.split(":")[1]))) as server:
        threading.Thread(target=lambda: server.accept()[0].close(), daemon=True).start()
        with pytest.raises(
            OSError, match=rf"^--coordinator {address}: port \d+ is not free here \(Address already in use"
        ):
            first(address)


PROGRAMS = {
    "generate": ("idefics_jax generate --prompt x --mesh data=-1", NAMES),
    "convert": ("conversion convert {model} {out}", ("--coordinator", "--num-processes", "--process-id")),
    "train": (
        "train --model {model} --data.train {data} --out {out}",
        ("--process.coordinator", "--process.count", "--process.index"),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "indices"),
    [("generate", (0, 0)), ("generate", (0, 1, 1)), ("convert", (0, 1, 1)), ("train", (0, 1, 1))],
)
def test_processes_of_one_number_end_with_a_sentence(program, indices, address, tmp_path):
    arguments, names = PROGRAMS[program]
    model = Path(__file__).parents[2] / "idefics_jax" / "pocket" / "model"
    (tmp_path / "data.jsonl").write_text('{"text": "A few words."}\n' * 8)
    arguments = arguments.format(model=model, out=tmp_path / "out", data=tmp_path / "data.jsonl")
    message = TWICE.format(indices[-1]).replace("--process", names[2])
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", *arguments.split(), names[0], address, names[1], "3", names[2], str(index)],
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in indices
    ]
    try:
        for process in processes:
            out, err = process.communicate(timeout=120)
            assert (process.returncode, out) == (1, ""), err
            assert message in err.splitlines()[-1]
            assert "Traceback" not in err
    finally:
        for process in processes:
            process.kill()
