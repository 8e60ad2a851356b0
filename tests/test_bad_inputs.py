"""Every bad input ends with one clear sentence, a non-zero status, bounded memory and time, and no traceback.

Rows are in `tests/bad_inputs/`, one module per subject. A case runs inside this process, since a start of JAX for each
would take minutes.
"""

import importlib
import io
import pkgutil
import re
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import pytest

import tests.bad_inputs
from tests.bad_inputs.case import Case, Folder
from tests.support.make_checkpoint import SMALL, make_checkpoint

MEMORY = 4 * 2**30  # bytes of addresses that a bad input may take beyond what the process has
COMMANDS = {"generate", "chat", "eval", "demo"}


def cases() -> Iterator:
    for module in pkgutil.iter_modules(tests.bad_inputs.__path__):
        for case in getattr(importlib.import_module(f"tests.bad_inputs.{module.name}"), "CASES", ()):
            yield pytest.param(case, id=f"{module.name}: {case.name}")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    jax.block_until_ready(jax.jit(lambda x: x + 1)(1.0))  # JAX's own threads reserve memory: not of a case's share
    return make_checkpoint(tmp_path_factory.mktemp("bad") / "checkpoint", changes=SMALL)


@contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """Raises TimeoutError after so many seconds, and MemoryError where more than `MEMORY` is taken."""

    def late(*_):
        raise TimeoutError(f"it hangs: no end after {seconds:g} seconds")

    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, limits[1]))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)


def run(program: str, arguments: list[str]) -> int:
    """Runs a command and returns its status."""
    if program in COMMANDS:
        from idefics_jax.cli import main

        return main([program, *arguments])
    if program == "train":
        from train.cli import main as train

        return train(arguments)
    from conversion.cli import main as conversion

    return conversion([program, *arguments])


@pytest.mark.parametrize("case", list(cases()))
def test_bad_input(case: Case, checkpoint, tmp_path, capsys, monkeypatch):
    folder = Folder(tmp_path, checkpoint)
    if case.files is not None:
        case.files(folder)
    program, *arguments = [
        part.replace("{d}", str(tmp_path)).replace("{checkpoint}", str(checkpoint)) for part in case.command
    ]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(case.stdin)))
    with bounded(case.seconds):
        try:
            status = run(program, arguments)
        except SystemExit as end:  # options that the parser refuses
            status = end.code
    out, err = capsys.readouterr()
    assert status not in (0, None), f"accepted: {out}"
    assert isinstance(status, int), status
    assert "Traceback" not in err, err
    assert "it hangs" not in err, err
    sentence = err.strip().splitlines()[-1]
    assert re.search(case.says, sentence), err
    assert len(sentence) < 1000, "a sentence, not a dump"
