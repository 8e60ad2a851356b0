"""What was found of a program, in Markdown."""

from collections.abc import Iterable, Mapping

from idefics_jax.cost.memory import Memory
from idefics_jax.cost.reading import Collective, Cost
from idefics_jax.parallel.hardware import GIB

LEFT_OUT = (
    "Estimates of the TPU compiler, not measurements: they leave out latencies, contention for memory and links, the "
    "host and the input pipeline. The compiler gives attention kernels (splash and that for images) no estimate: each "
    "counts by the blocks that it computes, at the cycles that the compiler scheduled for a block, as `python -m "
    "benchmarks.kernels` read them with libtpu 0.0.50. Another kernel counts by what it states, at half of the "
    "peak; one that states none is listed, and counts as nothing."
)


def fits_in_words(free: float) -> str:
    """Whether a program fits, by the bytes that it leaves free; negative where they are too few."""
    return f"yes, {free / GIB:.2f} GiB free" if free >= 0 else f"no, {-free / GIB:.2f} GiB too large"


def memory_in_words(memory: Memory, arguments: str, beside: float = 0) -> str:
    """How much a program takes of how much there is, and for what.

    Args:
        arguments: what it is given, such as "weights and caches".
        beside: bytes of what the device holds besides.
    """
    more = f", {beside / GIB:.2f} weights that it does not use" if beside else ""
    return (
        f"{(memory.total + beside) / GIB:.2f} of {memory.chip.hbm_bytes / GIB:.2f} GiB: "
        f"{memory.arguments / GIB:.2f} {arguments}, {memory.temporaries / GIB:.2f} temporaries{more}"
    )


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> list[str]:
    """A Markdown table's lines."""
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(map(str, cells))} |" for cells in lines]


def numbers(values: Mapping[str, str]) -> list[str]:
    """A table's lines of names and values."""
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in values.items())]


def components(cost: Cost, digits: int = 3) -> list[str]:
    """A table's lines: where the time goes, the most of it first."""
    shares = sorted(cost.by_component.items(), key=lambda item: -item[1])
    return table(
        ("part of the step", "seconds", "share"),
        (
            (name.replace("_", " "), f"{seconds:.{digits}f}", f"{seconds / cost.step_seconds:.1%}")
            for name, seconds in shares
        ),
    )


def collectives(found: Iterable[Collective]) -> list[str]:
    """A table's lines: what devices send each other, the longest first."""
    return table(
        ("collective", "of", "devices", "count", "MB sent per device", "ms", "not hidden"),
        (
            (
                each.kind if each.network == "ICI" else f"{each.kind} between slices",
                each.component.replace("_", " "),
                each.group,
                f"{each.count:,.0f}",
                f"{each.wire_bytes / 1e6:,.2f}",
                f"{each.seconds * 1e3:,.3f}",
                f"{each.exposed_seconds * 1e3:,.3f}",
            )
            for each in found
        ),
    )


def without_estimate(cost: Cost) -> list[str]:
    """A paragraph on what counts as nothing; [] where there is none."""
    names = [*cost.unpriced, *cost.unknown_loops]
    return ["", f"Without an estimate, and counted as nothing: {', '.join(names)}."] if names else []
