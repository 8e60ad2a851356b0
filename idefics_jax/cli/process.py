"""A program as a process: its streams, its signals, and its end."""

import _thread
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from idefics_jax.cli.errors import describe
from idefics_jax.utils.console import DEBUG, open_streams, show_unraisable
from idefics_jax.utils.interrupt import INTERRUPTED, end, end_at_interrupts

BROKEN_PIPE = 141  # what a shell reports for a program ended by SIGPIPE


def run_process(run: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run a program on the process's arguments, and end the process with the status that it returns."""
    open_streams()
    if not 20 <= _columns() <= 10_000:
        del os.environ["COLUMNS"]  # libraries that draw tables loop or fail
    end_at_interrupts()
    if not os.environ.get(DEBUG):
        # XLA logs what only its authors can use; what ends a program is an exception, or fatal and still shown.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        status = run(sys.argv[1:])
    except SystemExit as end:  # of a parser of options
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        status = INTERRUPTED
    status = flush_output(status)
    with suppress(OSError, ValueError):
        sys.stderr.flush()
    # Without Python's teardown: a computation that was interrupted goes on in JAX's threads, and would crash under it.
    os._exit(status)


def _columns() -> int:
    given = os.environ.get("COLUMNS", "80")
    return int(given) if given.isdecimal() and len(given) < 10 else 0


def interruptible() -> None:
    """Let an interrupt raise KeyboardInterrupt from now on, for a program that goes on after one, or has to tell it."""
    if signal.getsignal(signal.SIGINT) is end:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.unraisablehook = _interrupt_again


def _interrupt_again(unraisable: Any) -> None:
    """Repeat an interrupt that came inside of a callback, where it cannot be raised."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        threading.Timer(0.01, _thread.interrupt_main).start()
    else:
        show_unraisable(unraisable)


def flush_output(status: int) -> int:
    """Write out what was printed, and return the status, or that of the failure."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        discard_output()
        return BROKEN_PIPE
    except OSError as error:
        tell(f"idefics-jax: {describe(error)}")
        discard_output()
        return status or 1
    return status


def discard_output() -> None:
    """Let what is left to print go nowhere: whoever read it has gone."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def tell(text: str) -> None:
    """Print a line on standard error, whether or not anyone can still read it."""
    with suppress(OSError, ValueError):
        print(text.encode("utf-8", "backslashreplace").decode(), file=sys.stderr, flush=True)
