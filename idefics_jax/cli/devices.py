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


def join(coordinator: str | None, count: int | None, index: int | None, names: tuple[str, str, str]) -> None:
    """Joins the other processes, if there are any.

    Args:
        coordinator: HOST:PORT of the first; "auto", where JAX finds out by itself; None: there are no others.
        count, index: how many there are, and which one this is.
        names: of the three options.

    Raises:
        ValueError: the options are not complete.
        RuntimeError: the coordinator cannot be reached.
    """
    where, how_many, which = names
    if coordinator is None:
        if count is not None or index is not None:
            raise ValueError(f"{how_many} and {which} need {where}.")
        return
    import jax

    if coordinator == "auto":
        jax.distributed.initialize()
        return
    if count is None or index is None:
        raise ValueError(f"{where} HOST:PORT needs {how_many} and {which}.")
    if not 0 <= index < count:
        raise ValueError(f"{which} is {index}; it counts from 0 to {count - 1}.")
    jax.distributed.initialize(coordinator, count, index)


@contextmanager
def joined(options: argparse.Namespace) -> Iterator[bool]:
    """While it is open, this is one of several processes, if `--coordinator` says so; gives whether it is the first.

    Raises:
        ValueError: the options are not complete.
        RuntimeError: the coordinator cannot be reached.
    """
    if options.coordinator is not None and options.mesh is None:
        raise ValueError("--coordinator needs --mesh, which says how the devices of all processes share the model.")
    join(options.coordinator, options.processes, options.process, names=("--coordinator", "--processes", "--process"))
    if options.coordinator is None:
        yield True
        return
    import jax

    yield jax.process_index() == 0
    jax.distributed.shutdown()  # waits for the others; where this one failed it does not, and its end is theirs
