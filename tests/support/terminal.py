"""What a program shows at a pseudo-terminal."""

import os


def read_to_end(terminal: int) -> bytes:
    """Everything that arrives at our end until the other is closed; ours is closed then."""
    shown = b""
    try:
        while piece := os.read(terminal, 1 << 16):
            shown += piece
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(terminal)
    return shown
