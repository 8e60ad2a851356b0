"""End of a program at an interrupt. It is set up first, so this module imports next to nothing."""

import os
import signal

INTERRUPTED = 130  # what a shell reports for a program ended by SIGINT


def end_at_interrupts() -> None:
    """End the process at an interrupt from now on, without a traceback; not where it is ignored, as under nohup."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end)


def end(*_: object) -> None:
    """End the process.

    KeyboardInterrupt would be lost in JAX's callbacks, and would end Python inside of C++ while a module is imported.
    """
    if os.isatty(2):
        os.write(2, b"\x1b[?25h\n")  # a progress bar hides the cursor
    os._exit(INTERRUPTED)
