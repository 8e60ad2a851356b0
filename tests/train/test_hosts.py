"""Four processes of two devices each: one of them prints, and when one fails, all end and say which."""

import os
import re
import shutil
import signal
import time

import pytest

from tests.support.train_runs import free_port
from train.watch import SILENCE

BOUND = SILENCE + 45  # seconds within which all have ended, on a busy machine

pytestmark = pytest.mark.slow


@pytest.fixture
def start(place):
    """Starts four processes; `own`: changes for some of them."""
    processes = []

    def begin(out, own=None, **changes):
        several = {"process__coordinator": f"127.0.0.1:{free_port()}", "process__count": 4, "steps": 500, **changes}
        own = own or {}
        processes.extend(place.start(out, 2, **{**several, "process__index": i, **own.get(i, {})}) for i in range(4))
        return processes

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def wait_for_step(place, out, step, processes):
    log = place.directory / out / "metrics.jsonl"
    while not log.is_file() or f'"step": {step},' not in log.read_text():
        assert all(process.poll() is None for process in processes)
        time.sleep(0.05)


def ends(processes, without=()):
    """What each printed to standard error, once all have ended but those `without`."""
    printed, last = {}, time.monotonic() + BOUND
    for index, process in enumerate(processes):
        if index not in without:
            _, printed[index] = process.communicate(timeout=last - time.monotonic())
            assert process.returncode == 1, printed[index]
    return printed


def test_one_prints_and_traces(place, start):
    processes = start("whole", steps=6, profile="3:4")
    printed = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, printed
    assert "step 6/6" in printed[0][1]
    shown = [[line for line in out.splitlines() if not line.startswith("[Gloo]")] for out, _ in printed]  # JAX's own
    assert shown == [[str(place.directory / "whole" / "report.html")], [], [], []]
    assert not any(err.strip() for _, err in printed[1:])
    (trace,) = (place.directory / "whole" / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 1000


def test_an_error_before_the_first_step(start):
    printed = ends(start("before", {2: {"data__train": "nowhere"}}))
    for text in printed.values():
        assert re.match(r"train: Process 2 of 4 on \S+ failed: There is no nowhere; give", text.strip()), text


def test_an_error_between_steps(place, start):
    own = shutil.copytree(place.train, place.directory / "own")
    processes = start("between", {1: {"data__train": own}}, data__max_bad=0.0)
    wait_for_step(place, "between", 2, processes)
    for image in own.glob("*.png"):
        image.unlink()
    for text in ends(processes).values():
        errors = [line for line in text.splitlines() if line.startswith("train: ")]
        assert re.match(r"train: Process 1 of 4 on \S+ failed: .* records could not be used", errors[0]), text
        assert len(errors) == 1


@pytest.mark.parametrize(("number", "index"), [(signal.SIGKILL, 3), (signal.SIGSTOP, 2)])
def test_one_that_is_killed_or_stopped(number, index, place, start):
    processes = start(f"signal-{number}")
    wait_for_step(place, f"signal-{number}", 2, processes)
    processes[index].send_signal(number)
    for text in ends(processes, without=[index]).values():
        assert re.search(rf"train: Process {index} of 4 on \S+ has given no sign of life for 30 seconds", text), text


def test_they_end_when_nobody_reads_what_they_print(place, start):
    processes = start("unread")
    wait_for_step(place, "unread", 2, processes)
    for process in processes:
        process.stderr.close()
        process.stdout.close()
        process.stdout = process.stderr = None
    processes[3].kill()
    for process in processes[:3]:
        assert process.wait(timeout=BOUND) == 1


def test_one_that_hangs(place, start):
    own = shutil.copytree(place.train, place.directory / "hanging")
    processes = start("hangs", {3: {"data__train": own}}, process__patience=30)
    wait_for_step(place, "hangs", 2, processes)
    for image in own.glob("*.png"):  # whoever opens a pipe that nobody writes to waits for ever
        image.unlink()
        os.mkfifo(image)
    printed = ends(processes)
    for text in printed.values():
        assert re.search(r"No process has done a step for 30 seconds .*step (\d+) of \d+: Process 3 of 4 on", text), (
            text
        )
    assert "most recent call first" in printed[3], "where it hangs"
    assert "most recent call first" not in printed[1]


def test_a_dead_first_process_ends_the_others(place, start):
    """JAX itself sees to it, and aborts them."""
    processes = start("first")
    wait_for_step(place, "first", 2, processes)
    processes[0].kill()
    for process in processes[1:]:
        _, printed = process.communicate(timeout=BOUND)
        assert process.returncode not in (0, 75)
        assert "leader task was preempted/died" in printed or "Process 0, which the others report to" in printed
