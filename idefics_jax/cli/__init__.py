"""The `idefics-jax` command. JAX is imported only once there is something to compute, so that `--help` is instant."""

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper

from idefics_jax.cli.errors import describe
from idefics_jax.cli.process import (
    BROKEN_PIPE,
    discard_output,
    flush_output,
    run_process,
    tell,
)
from idefics_jax.utils.console import DEBUG, closed_streams
from idefics_jax.utils.interrupt import INTERRUPTED

WITHOUT_MODEL = "Using the pocket model, which knows drawings of common things; --model takes another."
STDOUT_CLOSED = "Standard output is closed, so nothing can be printed; redirect it to a file or to /dev/null."
CONVERSION = ("convert", "inspect", "verify")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments and return its exit status; without any, as a process, which it ends.

    Answers alone go to standard output. What goes wrong is one sentence on standard error and status 1, with a
    traceback instead where the environment has IDEFICS_JAX_DEBUG.
    """
    if arguments is None:
        run_process(execute)
    return execute(arguments)


def execute(arguments: Sequence[str]) -> int:
    """Run the command as `main` describes; everything is written out when it returns."""
    from idefics_jax.cli.arguments import make_parser
    from idefics_jax.cli.programs import conversion_main, train_main

    if arguments and arguments[0] == "train":
        return guarded("idefics-jax", lambda: train_main()(arguments[1:], "idefics-jax train"))
    if arguments and arguments[0] in CONVERSION:
        return guarded("idefics-jax", lambda: conversion_main()(arguments, "idefics-jax"))

    def run() -> int:
        options = make_parser().parse_args(arguments)
        options.arguments = list(arguments)
        if 1 in closed_streams and options.command != "eval":
            raise ValueError(STDOUT_CLOSED)
        if options.model is None:
            options.model = _pocket()
            tell(WITHOUT_MODEL)
        if options.command == "demo":
            from idefics_jax.cli.demo import run
        elif options.command == "generate":
            from idefics_jax.cli.generate import run
        elif options.command == "eval":
            from idefics_jax.cli.eval import run
        else:
            from idefics_jax.cli.chat import run
        return run(options)

    return guarded("idefics-jax", run)


def guarded(program: str, run: Callable[[], int]) -> int:
    """Run a command and return its exit status; an error is one sentence in the program's name."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an answer may hold characters that the terminal's encoding has not
    try:
        with plain_warnings(program):
            status = run()
        return flush_output(status)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        discard_output()
        return BROKEN_PIPE
    except Exception as error:
        if os.environ.get(DEBUG):
            raise
        tell(f"{program}: {describe(error)}")
        return flush_output(1)


@contextmanager
def plain_warnings(program: str) -> Iterator[None]:
    """Print warnings as one line each, without the place in the code; Pillow's, on files' metadata, are left out."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.showwarning = lambda message, *_, **__: tell(f"{program}: {message}")
        yield


def _pocket() -> str:
    from idefics_jax.pocket import POCKET

    return POCKET
