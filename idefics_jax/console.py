"""Standard streams of a command: they never stop the work, and show our own lines only."""

import io
import logging
import os
import sys
import warnings
from contextlib import suppress
from typing import Any

#: Read by XLA, libtpu and gRPC when they start: nothing but what ends the process.
QUIET = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "GRPC_VERBOSITY": "NONE",
}
#: Libraries whose warnings are about our calls or their own files, not about what a person did.
LIBRARIES = ("absl", "orbax", "grain", "jax", "etils", "fsspec", "gcsfs", "s3fs", "tensorboardX", "flax", "asyncio")


class _Unbreakable(io.FileIO):
    """File that goes on as /dev/null once nobody reads it."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            _to_nowhere(self.fileno())
            return memoryview(data).nbytes


def prepare() -> None:
    """Prepare the streams of a process; call it first, before JAX is imported.

    A closed stream becomes /dev/null: otherwise the next file that is opened takes its number, and messages are written
    into it. Standard error goes on as /dev/null when its reader goes away. With IDEFICS_JAX_DEBUG libraries may talk.
    """
    for number, name, mode in (0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w"):
        try:
            os.fstat(number)
        except OSError:
            _to_nowhere(number)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - for the whole process
    error = sys.stderr
    if error is sys.__stderr__ and isinstance(error, io.TextIOWrapper) and error.fileno() == 2:
        raw = _Unbreakable(2, "w", closefd=False)
        sys.stderr = io.TextIOWrapper(
            io.BufferedWriter(raw), error.encoding, "backslashreplace", line_buffering=True, write_through=True
        )
    if not os.environ.get("IDEFICS_JAX_DEBUG"):
        quiet()


def quiet() -> None:
    """Silence libraries, as far as they speak of what no person can act on."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")


def _to_nowhere(number: int) -> None:
    """Make a descriptor one of /dev/null."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_RDWR)
        if nowhere != number:
            os.dup2(nowhere, number)
            os.close(nowhere)
