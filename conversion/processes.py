"""Several processes that convert one checkpoint together, each a part of it."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from idefics_jax.cli.devices import join

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
    """Join the processes that the options name; raises as `devices.join`."""
    names = ("--coordinator", "--num-processes", "--process-id")
    join(options.coordinator, options.num_processes, options.process_id, names, options.coordinator_timeout)
    if options.coordinator is None:
        return Processes()
    import jax

    return Processes(jax.process_index(), jax.process_count())
