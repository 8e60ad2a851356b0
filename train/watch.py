"""Watches the processes of a run, so that none waits for ever for one that failed, died or hangs.

Every process tells JAX's coordination service, which process 0 serves, that it is alive and which step it is at.
Process 0 looks at all; whoever fails, or is found to have failed, is named there, and every process prints that and
ends.
"""

import faulthandler
import json
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Any, NamedTuple

import jax
from jax._src import distributed  # the client of the coordination service has no public name

from idefics_jax.cli.errors import describe
from idefics_jax.cli.process import interruptible, tell
from idefics_jax.utils.console import DEBUG

BEAT = 2.0  # seconds between signs of life
SILENCE = 30.0  # seconds without one, after which a process counts as dead
LAST_WORDS = 30.0  # seconds for what is still to be written
DONE = -1  # in place of a step: from now on there are none
KEY = "idefics_jax"


class Seen(NamedTuple):
    """What process 0 knows of a process: its last sign of life, its host and step, and when these two came."""

    beat: int
    host: str
    step: int
    alive: float
    moved: float


class Watchdog(AbstractContextManager):
    """Within it, a process that fails ends all processes of the run; of a run that has one, it does nothing.

    Args:
        patience: seconds without a step, after the first, that count as a hang.
    """

    def __init__(self, patience: float):
        self.patience = patience
        self.step = 0
        self.last_words: Callable[[], Any] = lambda: None  # what is done, if it can be, before the process ends
        self.seen: dict[int, Seen] = {}
        self.ending = threading.Lock()
        self.closed = threading.Event()
        self.answered = time.monotonic()
        if jax.process_count() > 1:
            interruptible()  # the others are to hear of an interrupt
            for work in (self._beat, self._listen):
                threading.Thread(target=work, name="watch", daemon=True).start()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or jax.process_count() == 1:
            return
        if os.environ.get(DEBUG):
            traceback.print_exception(error)
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            # Most likely what the end of another process looks like from here: that one is to be named.
            time.sleep(SILENCE + 5 * BEAT)
        reason = describe(error) if isinstance(error, Exception) else "it was interrupted"
        self._fail(f"{_name(jax.process_index(), socket.gethostname())} failed: {reason}", [])

    def at(self, step: int) -> None:
        """This step begins, now that its data are there; `DONE`: all are over."""
        self.step = step

    def close(self) -> None:
        """Ends the watch, before the processes leave each other."""
        self.closed.set()

    def _beat(self) -> None:
        """Tells that this process is alive, and hears of a failure; process 0 looks at the others."""
        client, index, beat = distributed.global_state.client, jax.process_index(), 0
        assert client is not None
        while not self.closed.wait(BEAT):
            beat += 1
            with suppress(jax.errors.JaxRuntimeError):  # the service is away: `_listen` waits for it
                sign = json.dumps([beat, socket.gethostname(), self.step])
                client.key_value_set(f"{KEY}/beat/{index}", sign, allow_overwrite=True)
                failed = client.key_value_dir_get(f"{KEY}/failed")
                signs = client.key_value_dir_get(f"{KEY}/beat") if index == 0 else []
                self.answered = time.monotonic()
                if failed:
                    self._end(*json.loads(failed[0][1]))
                for key, value in signs:
                    self._note(int(key.rpartition("/")[2]), *json.loads(value))
                if index == 0:
                    self._judge()

    def _listen(self) -> None:
        """Ends this process when the coordination service no longer answers."""
        while not self.closed.wait(BEAT):
            if time.monotonic() - self.answered > SILENCE:
                self._end(f"Process 0, which the others report to, has not answered for {SILENCE:.0f} seconds.", [0])

    def _note(self, process: int, beat: int, host: str, step: int) -> None:
        now, before = time.monotonic(), self.seen.get(process)
        alive = now if before is None or beat != before.beat else before.alive
        moved = now if before is None or step != before.step else before.moved
        self.seen[process] = Seen(beat, host, step, alive, moved)

    def _judge(self) -> None:
        now, steps = time.monotonic(), [seen.step for seen in self.seen.values()]
        for process, seen in self.seen.items():
            if now - seen.alive > SILENCE:
                self._fail(
                    f"{_name(process, seen.host)} has given no sign of life for {SILENCE:.0f} seconds: it was killed "
                    f"or stopped, or its host is out of reach. It was at step {seen.step}.",
                    [process],
                )
        hangs = max(steps) > 1 and DONE not in steps  # before the second, the first is compiled
        if hangs and now - max(seen.moved for seen in self.seen.values()) > self.patience:
            behind = [process for process, seen in self.seen.items() if seen.step == min(steps)]
            names = ", ".join(_name(process, self.seen[process].host) for process in behind)
            self._fail(
                f"No process has done a step for {self.patience:g} seconds (--process.patience). Behind the others, at "
                f"step {min(steps)} of {max(steps)}: {names}."
                if min(steps) < max(steps)
                else f"No process has done a step for {self.patience:g} seconds (--process.patience); all are at step "
                f"{max(steps)}.",
                behind,
            )

    def _fail(self, text: str, processes: list[int]) -> None:
        """Tells all processes which one failed, unless another was named first."""
        client = distributed.global_state.client
        with suppress(jax.errors.JaxRuntimeError):
            assert client is not None
            client.key_value_set(f"{KEY}/failed/first", json.dumps([text, processes]))
        if jax.process_index() > 0:
            time.sleep(2 * BEAT)  # if another was named first, `_beat` says so meanwhile
        self._end(text, processes)

    def _end(self, text: str, processes: list[int]) -> None:
        if not self.ending.acquire(blocking=False):
            time.sleep(2 * LAST_WORDS)  # the other thread ends the process
        tell(f"train: {text}")
        if jax.process_index() in processes:
            faulthandler.dump_traceback()  # of one that hangs: where
        writing = threading.Thread(target=self.last_words, daemon=True)
        writing.start()
        writing.join(LAST_WORDS)
        if jax.process_index() == 0:
            time.sleep(2 * BEAT)  # the others ask here
        os._exit(1)


def _name(process: int, host: str) -> str:
    return f"Process {process} of {jax.process_count()} on {host}"
