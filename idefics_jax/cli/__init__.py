"""The `idefics-jax` command. JAX is imported only once there is something to compute, so that `--help` is instant."""

import os
import sys
from collections.abc import Callable, Sequence
from io import TextIOWrapper

from idefics_jax.cli.arguments import make_parser
from idefics_jax.pocket import POCKET

WITHOUT_MODEL = "Using the pocket model, which knows drawings of common things; --model takes another."
INTERRUPTED, BROKEN_PIPE = 130, 141  # what a shell reports for a program ended by SIGINT or SIGPIPE


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command with these arguments and returns its exit status; without any, as a process, which it ends.

    Answers alone go to standard output. What goes wrong is one sentence on standard error and status 1, with a
    traceback instead where the environment has IDEFICS_JAX_DEBUG.
    """
    if arguments is not None:
        return execute(arguments)
    status = execute(sys.argv[1:])
    sys.stderr.flush()
    # Without Python's teardown: a computation that was interrupted goes on in JAX's threads, and would crash under it.
    os._exit(status)


def execute(arguments: Sequence[str]) -> int:
    """What `main` says; everything is written out when it returns."""
    options = make_parser().parse_args(arguments)
    options.arguments = list(arguments)

    def run() -> int:
        if options.model is None:
            options.model = POCKET
            print(WITHOUT_MODEL, file=sys.stderr)
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
    """Runs a command and returns its exit status; what goes wrong is told as `main` says, in the program's name."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an answer may hold characters that the terminal's encoding has not
    try:
        status = run()
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the answer has gone; what is left to write, at exit too, goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (OSError, ValueError, MemoryError, RuntimeError) as error:
        if os.environ.get("IDEFICS_JAX_DEBUG"):
            raise
        print(f"{program}: {describe(error)}", file=sys.stderr)
        return 1


def describe(error: Exception) -> str:
    """One sentence for a person."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename} cannot be read: {error.strerror}."
    text = next(iter(str(error).splitlines()), "") or type(error).__name__
    if "RESOURCE_EXHAUSTED" in text or isinstance(error, MemoryError):
        return f"The memory is too small for the model and this prompt ({text}); --dtype bfloat16 takes the least."
    return text
