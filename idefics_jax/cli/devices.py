"""The devices that a command computes on: `--mesh`, and the processes of several hosts."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager


def mesh_sizes(text: str) -> dict[str, int]:
    """The sizes that `--mesh` gives, such as "fsdp=2,tensor=4"; an axis that it does not name has 1.

    Raises:
        argparse.ArgumentTypeError: what is wrong.
    """
    from idefics_jax.sharding import MESH_AXES  # with JAX, which only who asks for a mesh waits for

    sizes = {}
    for part in text.split(","):
        axis, equals, size = part.strip().partition("=")
        if axis not in MESH_AXES:
            raise argparse.ArgumentTypeError(f"there is no axis {axis!r}; the axes are {', '.join(MESH_AXES)}")
        if axis in sizes:
            raise argparse.ArgumentTypeError(f"{axis} is given twice")
        if not equals or not size.removeprefix("-").isdecimal() or (int(size) < 1 and size != "-1"):
            raise argparse.ArgumentTypeError(f"{part.strip()!r} must be {axis}= and a whole number, or -1 for the rest")
        sizes[axis] = int(size)
    if list(sizes.values()).count(-1) > 1:
        raise argparse.ArgumentTypeError("only one axis can be -1, the rest of the devices")
    return dict.fromkeys(MESH_AXES, 1) | sizes


@contextmanager
def joined(options: argparse.Namespace) -> Iterator[bool]:
    """While it is open, this is one of several processes, if `--coordinator` says so; gives whether it is the first.

    Raises:
        ValueError: the options are not complete.
        RuntimeError: the coordinator cannot be reached.
    """
    count, index = options.processes, options.process
    if options.coordinator is None:
        if count is not None or index is not None:
            raise ValueError("--processes and --process need --coordinator.")
        yield True
        return
    import jax

    if options.mesh is None:
        raise ValueError("--coordinator needs --mesh, which says how the devices of all processes share the model.")
    if options.coordinator == "auto":
        jax.distributed.initialize()
    else:
        if count is None or index is None:
            raise ValueError("--coordinator HOST:PORT needs --processes and --process.")
        if not 0 <= index < count:
            raise ValueError(f"--process is {index}; it counts from 0 to {count - 1}.")
        jax.distributed.initialize(options.coordinator, count, index)
    yield jax.process_index() == 0
    jax.distributed.shutdown()  # waits for the others; where this one failed it does not, and its end is theirs
