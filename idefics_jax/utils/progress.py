"""Progress on standard error, so that what a program prints stays clean."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

COMPILING = "/jax/compilation_cache/compile_requests_use_cache"  # events of `jax.monitoring`
COMPILED = "/jax/core/compile/backend_compile_duration"


@contextmanager
def bytes_progress(description: str, total: int, visible: bool) -> Iterator[Callable[[int], None]]:
    """Gives a function to call with the bytes just done; shows their share, speed and time left where `visible`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not visible, transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda amount: bar.advance(task, amount)


@contextmanager
def count_progress(description: str, total: int, visible: bool) -> Iterator[Callable[[int], None]]:
    """Gives a function to call with how many more are done; shows how many of all are and the time left, where
    `visible`."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not visible, transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda count: bar.advance(task, count)


@contextmanager
def activity(description: str, visible: bool) -> Iterator[Callable[[], None]]:
    """Gives a function that ends the display; shows what goes on and, while JAX compiles, that, where `visible`."""
    if not visible:
        yield lambda: None
        return
    import jax.monitoring

    programs = 0
    status = Console(stderr=True).status(description)

    def compiling(event: str, **_: object) -> None:
        nonlocal programs
        if event == COMPILING:
            programs += 1
            status.update(f"Compiling program {programs} (kept for next time)")

    def compiled(event: str, duration_secs: float, **_: object) -> None:
        if event == COMPILED:
            status.update(description)

    jax.monitoring.register_event_listener(compiling)
    jax.monitoring.register_event_duration_secs_listener(compiled)
    try:
        with status:
            yield status.stop
    finally:
        jax.monitoring.unregister_event_listener(compiling)
        jax.monitoring.unregister_event_duration_listener(compiled)
