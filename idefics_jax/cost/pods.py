"""Programs compiled for a pod on any machine, and whether they fit it."""

import math
import os
import re
import time
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from idefics_jax.cost.analyze import analyze
from idefics_jax.cost.kernels import kernel_cycles
from idefics_jax.cost.memory import Memory, memory
from idefics_jax.cost.reading import Cost
from idefics_jax.parallel.hardware import Chip
from idefics_jax.utils.console import quiet


class Compiled(NamedTuple):
    """What the compiler says of a program.

    Attributes:
        seconds: that compiling took.
        memory, cost: None where the program does not fit.
        reason: the compiler's, why it does not; None where it does.
        program: None where it does not fit.
    """

    seconds: float
    memory: Memory | None
    cost: Cost | None
    reason: str | None
    program: jax.stages.Compiled | None = None


def pod_devices(topology: str, slices: int) -> list[Any]:
    """The devices of a pod as the TPU compiler knows it, such as "v5e:16x16"; `slices` of them.

    Raises:
        ValueError: the compiler is not installed, or knows no such pod.
    """
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no TPU whose metadata could be asked for
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # nor one that another process could be using
    # Never kept: JAX could not read programs for absent devices back.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", math.inf)
    try:
        options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
        options |= {"wrap": closed_sides(topology)}
        first = _sides(topology)[:2]
        if 1 in first:  # libtpu 0.0.42 expects hosts of 2 x 2 chips otherwise
            options["chips_per_host_bounds"] = [*(min(side, 2) for side in first), 1]
        with quiet():
            return list(topologies.get_topology_desc(topology, platform="tpu", **options).devices)
    except Exception as error:  # JAX raises several kinds
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"--plan {topology}: the TPU compiler does not take it ({reason}). It comes with `pip install .[tpu]`, and "
            "names are like v5e:16x16, v5p:4x4x4 or v6e:8x8."
        ) from error


def closed_sides(topology: str) -> list[int]:
    """1 for each of a pod's three sides whose ends are linked, 0 for the others; the compiler takes none for linked.

    Grids of two dimensions are closed along sides of 16; those of three are made of cubes of 4, linked all round ("How
    to Scale Your Model", section on TPU networking).
    """
    sides = _sides(topology)
    if len(sides) == 3:
        return [int(all(side % 4 == 0 for side in sides))] * 3
    return [*(int(side == 16) for side in sides), 0]


def _sides(topology: str) -> list[int]:
    return [int(side) for side in re.findall(r"\d+", topology.partition(":")[2])]


def compiled(
    lowered: jax.stages.Lowered,
    chip: Chip,
    devices: int,
    options: dict[str, str | bool],
    *,
    turn: bool = False,
    turns: int | None = None,
) -> Compiled:
    """Compiles a program that was lowered for a pod's devices, and reads what it costs.

    Args:
        chip: the pod's.
        devices: in a slice.
        options: the compiler's.
        turn, turns: what of its loop to count (see `analyze`).
    """
    start = time.monotonic()
    try:
        program = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Compiled(time.monotonic() - start, None, None, too_large(str(error)))
    seconds = time.monotonic() - start
    cost = analyze(program.as_text() or "", chip, devices, kernel_cycles=kernel_cycles, turn=turn, turns=turns)
    return Compiled(seconds, memory(program, chip), cost, None, program)


def too_large(message: str) -> str:
    """The compiler's complaint in plain words: how much the program needs of how much there is."""
    line = next((line for line in message.splitlines() if "Used" in line or "exceeded" in line.lower()), message)
    return " ".join(line.split())[:300]
