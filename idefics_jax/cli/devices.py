"""The devices that a command computes on: `--mesh`, and the processes of several hosts."""

import argparse
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from idefics_jax.cli.process import tell
from idefics_jax.cli.roll_call import Process, answer_roll, call_roll, serve

WAITING = 300  # seconds for the other processes, by default
SILENT = 5  # seconds of them without a word


def mesh_sizes(text: str) -> dict[str, int]:
    """The sizes that `--mesh` gives, as `idefics_jax.parallel.mesh.mesh_sizes` reads them.

    Raises:
        argparse.ArgumentTypeError: what is wrong.
    """
    from idefics_jax.parallel import mesh  # with JAX, which only who asks for a mesh waits for

    try:
        return mesh.mesh_sizes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def join(
    coordinator: str | None,
    count: int | None,
    index: int | None,
    names: tuple[str, str, str],
    timeout: int = WAITING,
) -> None:
    """Join the other processes, if there are any.

    Args:
        coordinator: HOST:PORT of the first; "auto", where JAX finds out by itself; None: there are no others.
        count, index: how many there are, and which one this is.
        names: of the three options.
        timeout: seconds to wait for the others.

    Raises:
        ValueError: the options are not complete, or do not go with those of another process.
        OSError: the first process cannot use its port.
        RuntimeError: the others did not come in time.
    """
    where, how_many, which = names
    if coordinator is None:
        if count is not None or index is not None:
            raise ValueError(f"{how_many} and {which} need {where}.")
        return
    if coordinator == "auto":
        try:
            _initialize("the other processes, which JAX finds by itself", timeout)
        except ValueError as error:
            raise ValueError(
                f"{where} auto finds the others on TPU pods and under Slurm, Open MPI and Kubernetes, and here it does "
                f"not; give HOST:PORT of the first process, {how_many} and {which}."
            ) from error
        return
    if count is None or index is None:
        raise ValueError(f"{where} HOST:PORT needs {how_many} and {which}.")
    if not 0 <= index < count:
        raise ValueError(f"{which} is {index}; it counts from 0 to {count - 1}.")
    process = Process(coordinator, count, index, names)
    if index == 0:
        meet = partial(call_roll, serve(process), process)
        others = "process 1" if count == 2 else f"processes 1 to {count - 1}"
        awaited = f"{others}, which this process awaits at {coordinator}"
    else:
        meet = partial(answer_roll, process)
        awaited = f"process 0 at {coordinator}"
    _initialize(awaited, timeout, meet, coordinator_address=coordinator, num_processes=count, process_id=index)


def _initialize(awaited: str, timeout: int, meet: Callable[[], None] = lambda: None, **arguments: Any) -> None:
    """Run `meet`, then `jax.distributed.initialize` in a thread: it waits in C++, deaf to interrupts, and aborts."""
    import jax

    failed: list[Exception] = []

    def work() -> None:
        try:
            meet()
            jax.distributed.initialize(**arguments, initialization_timeout=timeout + 3600)
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=work, name="join", daemon=True)
    thread.start()
    thread.join(min(timeout, SILENT))
    if thread.is_alive():
        tell(f"Waiting for {awaited}, for up to {timeout} seconds.")
        thread.join(max(timeout - SILENT, 0))
    if thread.is_alive():
        raise RuntimeError(
            f"Waited {timeout} seconds for {awaited}: start the same command on every host, each with its own number, "
            "check that they reach that address, or wait longer (the coordinator's timeout)."
        )
    if failed:
        raise failed[0]


def start() -> None:
    """Start JAX on this machine's devices, without what its libraries print.

    Raises:
        RuntimeError: JAX_PLATFORMS names what is not here.
    """
    import jax

    from idefics_jax.utils.console import quiet

    with nullcontext() if jax.distributed.is_initialized() else quiet():
        platform = jax.default_backend()
    if platform == "cpu" and Path("/dev/nvidiactl").exists() and not os.environ.get("JAX_PLATFORMS"):
        tell(
            "This machine has an NVIDIA GPU, and JAX does not use it: pip install 'idefics-jax[cuda]' (CUDA 13; cuda12 "
            "for CUDA 12) if that is missing; IDEFICS_JAX_DEBUG=1 shows what fails."
        )


@contextmanager
def joined(options: argparse.Namespace) -> Iterator[bool]:
    """While it is open, this is one of several processes, if `--coordinator` says so; gives whether it is the first.

    Raises:
        ValueError: the options are not complete.
        OSError, RuntimeError: as `join`.
    """
    if options.coordinator is not None and options.mesh is None:
        raise ValueError("--coordinator needs --mesh, which says how the devices of all processes share the model.")
    names = ("--coordinator", "--processes", "--process")
    join(options.coordinator, options.processes, options.process, names, options.coordinator_timeout)
    if options.coordinator is None:
        yield True
        return
    import jax

    yield jax.process_index() == 0
    jax.distributed.shutdown()  # waits for the others; where this one failed it does not, and its end is theirs
