"""Traces of some steps, for xprof and TensorBoard's profile plugin."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

FOLDER = "profile"


class Profile:
    """Traces the steps that were asked for.

    Args:
        steps: "20:25", both counted from 1 and included; None: none.
        directory: of the run; traces come into a folder of it.

    Raises:
        ValueError: `steps` is nothing of the kind.
    """

    def __init__(self, steps: str | None, directory: Path):
        self.directory = directory / FOLDER
        self.first, self.last = (0, 0) if steps is None else _range(steps)
        self.running = False

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around the call that starts step `number`."""
        if number == self.first:
            jax.profiler.start_trace(self.directory)
            self.running = True
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def after(self, number: int, values: Any) -> None:
        """After that call, with what the step computes: the last step is waited for, and the trace written."""
        if self.running and number == self.last:
            jax.block_until_ready(values)
            self.close()

    def close(self) -> None:
        """Writes a trace that was not finished."""
        if self.running:
            jax.profiler.stop_trace()
            self.running = False


def _range(steps: str) -> tuple[int, int]:
    first, _, last = steps.partition(":")
    if first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last):
        return int(first), int(last)
    raise ValueError(f"--profile {steps} names no steps; give the first and the last, counted from 1, as in 20:25.")
