"""The processes of a run: joining them, and stopping all of them at the same step."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
from jax.experimental import multihost_utils

from idefics_jax.cli import devices

from .config import ProcessConfig

PREEMPTED = 75  # the exit status of a run that was told to stop and will go on: EX_TEMPFAIL of sysexits.h
INTERRUPTED = 130


def join(config: ProcessConfig) -> None:
    """Join the other processes, if there are any, and start JAX; raises as `devices.join`."""
    names = ("--process.coordinator", "--process.count", "--process.index")
    devices.join(config.coordinator, config.count, config.index, names, config.timeout)
    devices.start()


def leave() -> None:
    """Waits for the other processes, so that none takes another's end for a failure."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("end of the run")
        jax.distributed.shutdown()


def agreed(true: bool) -> bool:
    """Return what the first process says, in every process; all wait here for each other."""
    if jax.process_count() == 1:
        return true
    return bool(multihost_utils.broadcast_one_to_all(true))


class StopRequest:
    """Whether the run was asked to stop: by SIGTERM (preemption) or, once, by Ctrl-C."""

    def __init__(self) -> None:
        self.status = 0

    def at(self, step: int) -> int:
        """The exit status to stop with after this step, the same in every process; 0: go on."""
        if jax.process_count() > 1:
            # JAX's own handler has SIGTERM then, and agrees with the other processes on a step.
            return PREEMPTED if multihost_utils.reached_preemption_sync_point(step) else 0
        return self.status

    def _handle(self, number: int, frame: Any) -> None:
        if self.status:  # a second time: at once
            os._exit(self.status)
        self.status = INTERRUPTED if number == signal.SIGINT else PREEMPTED


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """While it is open, signals ask the run to stop instead of ending it."""
    request = StopRequest()
    if jax.process_count() > 1:
        yield request
        return
    before = {number: signal.signal(number, request._handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
