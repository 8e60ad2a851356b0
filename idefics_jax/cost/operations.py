"""What one operation costs: the compiler's own estimate of its cycles, held against what HBM allows.

The compiler writes an estimate beside every fusion, copy, convert, reduce and so on that it emits. Its estimates of
matrix products are good, save that a product whose operands come slowly from HBM takes as long as they take. Of
everything else they are two to four times too high where HBM is the limit (a bfloat16 addition at 32 % of a v5e's
bandwidth), so there the time of the bytes is taken where it is less.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from idefics_jax.cost import matmuls
from idefics_jax.cost.components import component
from idefics_jax.cost.hlo import Computation, Instruction, Program, shape_bytes
from idefics_jax.cost.traffic import hbm_bytes
from idefics_jax.parallel.hardware import Chip

#: The share of HBM's bandwidth that an operation reaches that does nothing but read and write; seen in public traces.
HBM_SHARE = 0.85

#: The share of the matrix units' peak that a Pallas kernel of so many FLOPs is assumed to reach: what tuned attention
#: kernels do on TPUs, whose exponentials keep the vector unit as busy as the products keep the matrix units.
KERNEL_SHARE = 0.5

KernelCycles = Callable[[Instruction, Chip], float | None]

#: Cycles below which the time of an operation's bytes says nothing.
_FEW_CYCLES = 500

_KERNEL_COST = re.compile(r'"cost_estimate":\{"flops":"(\d+)"[^}]*?"bytes_accessed":"(\d+)"')

_CATEGORIES = {
    "fusion": "elementwise",
    "convert": "elementwise",
    "broadcast": "elementwise",
    "copy": "copy",
    "transpose": "copy",
    "reshape": "copy",
    "reduce": "reduce",
    "reduce-window": "reduce",
    "scatter": "scatter",
    "gather": "gather",
    "sort": "sort",
}


class Price(NamedTuple):
    """What an operation costs each time that it runs.

    Attributes:
        category: "matmul", "elementwise", "copy", "reduce", "scatter", "gather", "sort", "pallas" or "other".
        estimated_cycles: the compiler's own, 0 where it made none.
        cycles: held against HBM.
        hbm_bytes: read and written.
        flops: of its matrix products; 0 for kernels.
        limit: what takes the time, "compute" or "HBM".
    """

    category: str
    estimated_cycles: float
    cycles: float
    hbm_bytes: float
    flops: int
    limit: str


def price(program: Program, owner: Computation, op: Instruction, chip: Chip) -> Price:
    """What `op` of `owner` costs; it is no collective, no custom call and does no loop."""
    inside = list(program.within(op.called)) if op.called in program.computations else [(owner, op)]
    flops = sum(matmuls.flops(place, each) for place, each in inside if each.opcode in matmuls.PRODUCTS)
    category = _category(op, {each.opcode for _, each in inside})
    moved, estimate = hbm_bytes(program, owner, op), op.estimated_cycles
    at_full_speed = moved / chip.hbm_bytes_per_cycle
    at_usual_speed = at_full_speed / HBM_SHARE
    if estimate is None:
        return Price(category, 0, at_usual_speed, moved, flops, "HBM")
    if category == "matmul":
        limit = "HBM" if at_full_speed > estimate else "compute"
        return Price(category, estimate, max(estimate, at_full_speed), moved, flops, limit)
    if at_usual_speed > _FEW_CYCLES:
        return Price(category, estimate, min(estimate, at_usual_speed), moved, flops, "HBM")
    # What it works on is on the chip, which takes no longer than from HBM would, whatever the estimate is.
    from_hbm = hbm_bytes(program, owner, op, anywhere=True) / chip.hbm_bytes_per_cycle / HBM_SHARE
    cycles = min(estimate, from_hbm) if from_hbm > _FEW_CYCLES else estimate
    return Price(category, estimate, cycles, moved, flops, "compute")


def _category(op: Instruction, opcodes: set[str]) -> str:
    if opcodes.intersection(matmuls.PRODUCTS):
        return "matmul"
    if op.opcode == "fusion":
        for category, made_of in (
            ("scatter", {"scatter"}),
            ("gather", {"gather"}),
            ("reduce", {"reduce", "reduce-window"}),
        ):
            if opcodes & made_of:
                return category
    return _CATEGORIES.get(op.opcode, "other")


def price_kernel(
    program: Program,
    owner: Computation,
    op: Instruction,
    chip: Chip,
    kernel_cycles: KernelCycles | None,
) -> Price | None:
    """What a Pallas kernel costs, by the `pl.CostEstimate` that it carries, else by its cycles; None without either."""
    moved = hbm_bytes(program, owner, op)
    if found := _KERNEL_COST.search(op.text):
        computing, needed = float(found[1]) / (chip.flops_per_cycle * KERNEL_SHARE), float(found[2])
    else:
        computing, needed = kernel_cycles(op, chip) if kernel_cycles else None, moved
    if computing is None:
        return None
    reading = needed / chip.hbm_bytes_per_cycle / HBM_SHARE
    limit = "HBM" if reading > computing else "compute"
    return Price("pallas", max(computing, reading), max(computing, reading), moved, 0, limit)


def component_of(program: Program, owner: Computation, op: Instruction) -> str | None:
    """The component that `op` of `owner` is of: its own scope's, else that of what it is made of, else its users'.

    Of a fusion without a scope the result's counts, or else that of the largest operation in it. A copy is its user's.
    """
    if own := component(op.op_name):
        return own
    fused = program.computations.get(op.called or "")
    if fused is not None:
        if fused.root is not None and (of_result := component(fused.root.op_name)):
            return of_result
        scoped = [(shape_bytes(each.shape), component(each.op_name)) for _, each in program.within(fused.name)]
        if named := [(size, name) for size, name in scoped if name]:
            return max(named)[1]
    return next((found for user in owner.users.get(op.name, ()) if (found := component(user.op_name))), None)
