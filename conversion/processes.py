"""Several processes that convert one checkpoint together, each a part of it."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from .targets import Unit


class Processes(NamedTuple):
    """Which process this is, of how many."""

    index: int = 0
    count: int = 1

    def share(self, units: list[Unit]) -> list[Unit]:
        """This process's units: neighbours, which come from few of the source's files, of about equal bytes."""
        total = sum(unit.nbytes for unit in units)
        shares, start = [], 0
        for unit in units:
            if (start + unit.nbytes / 2) * self.count // max(total, 1) == self.index:
                shares.append(unit)
            start += unit.nbytes
        return shares

    @contextmanager
    def together(self) -> Iterator[None]:
        """A phase that no process leaves before the others, and in which the failure of one is that of all.

        Raises:
            RuntimeError: another process failed.
        """
        error = None
        try:
            yield
        except Exception as caught:
            error = caught
        if self.count > 1:
            from jax.experimental import multihost_utils

            failed = np.ravel(multihost_utils.process_allgather(np.array(error is not None)))
            if error is None and failed.any():
                raise RuntimeError(f"Process {np.argmax(failed)} failed, and says why; nothing was finished.")
        if error is not None:
            raise error


def start(options: argparse.Namespace) -> Processes:
    """Joins the processes that the options name.

    Raises:
        ValueError: the options are not complete.
        RuntimeError: the coordinator cannot be reached.
    """
    given = (options.coordinator, options.num_processes, options.process_id)
    if all(value is None for value in given):
        return Processes()
    if any(value is None for value in given):
        raise ValueError("--coordinator, --num-processes and --process-id go together; give all three.")
    if not 0 <= options.process_id < options.num_processes:
        raise ValueError(f"--process-id is {options.process_id}; it counts from 0 to {options.num_processes - 1}.")
    import jax

    jax.distributed.initialize(options.coordinator, options.num_processes, options.process_id)
    return Processes(options.process_id, options.num_processes)
