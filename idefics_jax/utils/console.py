"""Standard streams of a command: they never stop the work, and show our own lines only."""

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

DEBUG = "IDEFICS_JAX_DEBUG"  # environment variable: tracebacks, and the lines of libraries
closed_streams: set[int] = set()  # 0, 1 and 2 where the process was started without them
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


def open_streams() -> None:
    """Open the null device for standard streams that are closed: otherwise the next file that is opened takes their
    number, and messages are written into it."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        closed_streams.add(descriptor)
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - until the process ends


def prepare() -> None:
    """Prepare the streams of a process that works for long; call it first, before JAX is imported.

    Standard error goes on as /dev/null when its reader goes away. With IDEFICS_JAX_DEBUG libraries may talk.
    """
    open_streams()
    error = sys.stderr
    if error is sys.__stderr__ and isinstance(error, io.TextIOWrapper) and error.fileno() == 2:
        raw = _Unbreakable(2, "w", closefd=False)
        sys.stderr = io.TextIOWrapper(
            io.BufferedWriter(raw), error.encoding, "backslashreplace", line_buffering=True, write_through=True
        )
    if not os.environ.get(DEBUG):
        silence()


def silence() -> None:
    """Silence libraries, as far as they speak of what no person can act on."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    sys.unraisablehook = show_unraisable


def show_unraisable(unraisable: Any) -> None:
    """Print an exception that cannot be raised, as Python does, unless it comes from a future that nobody waits for.

    Once a checkpoint cannot be written, each of its pieces that are left raises such a one in TensorStore's callbacks;
    the failure itself has been raised where the checkpoint is waited for.
    """
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


@contextmanager
def quiet() -> Iterator[None]:
    """Hide what libraries write to standard error meanwhile, unless the environment has IDEFICS_JAX_DEBUG.

    libtpu prints lines of its own wherever it is installed without a TPU, and no setting of it turns them off; JAX
    logs a traceback where its CUDA plugin finds no GPU. Errors are exceptions, and pass.
    """
    if os.environ.get(DEBUG):
        yield
        return
    logger = logging.getLogger("jax._src.xla_bridge")
    level = logger.level
    before = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        logger.setLevel(logging.CRITICAL)
        yield
    finally:
        logger.setLevel(level)
        os.dup2(before, 2)
        os.close(before)
        os.close(null)


def _to_nowhere(number: int) -> None:
    """Make a descriptor one of /dev/null."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_RDWR)
        if nowhere != number:
            os.dup2(nowhere, number)
            os.close(nowhere)
