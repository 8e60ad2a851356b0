"""Bytes that an operation reads from HBM and writes to it.

A fusion that takes a slice of a large array, as a scanned layer does of the stacked weights, reads the slice only; one
that updates a slice in place writes the slice only. So what a fusion is made of is followed from its parameters to
their users, and from its result to what made it. What a fusion hands through, such as the buffers of a collective that
runs beside it, it neither reads nor writes; a collective's own bytes count once, where it begins.
"""

from idefics_jax.cost.collectives import KINDS
from idefics_jax.cost.hlo import Computation, Instruction, Program, shape_bytes

_SLICES = ("dynamic-slice", "slice", "gather")
_VIEWS = ("bitcast", "reshape")


def hbm_bytes(program: Program, owner: Computation, op: Instruction, anywhere: bool = False) -> float:
    """Bytes that `op` of `owner` reads and writes in HBM; `anywhere`: and in the chip's own memory."""
    fused = program.computations.get(op.called or "")
    total = 0.0
    for number, name in enumerate(op.operands):
        source = owner.by_name.get(name)
        size = shape_bytes(source.shape, not anywhere) if source else 0
        if size and fused is not None and number in fused.parameters:
            size = _read(program, fused, fused.parameters[number].name, size)
        elif size and number == 0 and op.opcode in _SLICES:
            size = shape_bytes(op.shape)
        elif number == 0 and op.opcode == "dynamic-update-slice":
            size = 0
        total += size
    return total + _result_bytes(program, owner, op, fused, anywhere)


def _result_bytes(
    program: Program, owner: Computation, op: Instruction, fused: Computation | None, anywhere: bool
) -> float:
    size = shape_bytes(op.shape, not anywhere)
    if not size:
        return 0
    if op.opcode == "dynamic-update-slice":
        return shape_bytes(owner.by_name[op.operands[1]].shape)
    if fused is None or fused.root is None:
        return size
    if fused.root.opcode != "tuple":
        return min(size, _written(program, fused, fused.root.name, size))
    own = [name for name in fused.root.operands if fused.by_name[name].opcode not in ("parameter", *KINDS)]
    results = {name: shape_bytes(fused.by_name[name].shape, not anywhere) for name in own}
    written = (_written(program, fused, name, results[name]) for name in own if results[name])
    return min(size, sum(written))


def _read(program: Program, computation: Computation, name: str, size: float) -> float:
    """Bytes of the value `name`, of `size` bytes, that a fused computation really reads."""
    total = 0.0
    for user in computation.users.get(name, ()):
        fused = program.computations.get(user.called or "")
        if user.opcode in _SLICES:
            total += shape_bytes(user.shape) if user.operands[0] == name else 0
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
            continue  # written in place
        elif user.opcode in KINDS or (user.opcode == "tuple" and user is computation.root):
            continue
        elif user.opcode in _VIEWS or (user.opcode == "copy" and user is not computation.root):
            total += _read(program, computation, user.name, size)  # of a copy inside too, what is used is read
        elif fused is not None:
            for number in (number for number, operand in enumerate(user.operands) if operand == name):
                whole = _views(fused, number) and user.name != getattr(computation.root, "name", None)
                inside = (computation, user.name) if whole else (fused, fused.parameters[number].name)
                total += _read(program, *inside, size)
        else:
            return size
    return min(total, size)


def _views(computation: Computation, number: int) -> bool:
    """Whether all that a computation does is to give a parameter another shape or layout."""
    made = computation.root
    while made is not None and made.opcode in (*_VIEWS, "copy"):
        made = computation.by_name.get(made.operands[0])
    return made is not None and made.name == computation.parameters[number].name


def _written(program: Program, computation: Computation, name: str, size: float) -> float:
    """Bytes that are written for the result `name`, of `size` bytes, of a fused computation."""
    made = computation.by_name[name]
    if made.opcode == "dynamic-update-slice":
        return shape_bytes(computation.by_name[made.operands[1]].shape)
    if made.opcode in (*_VIEWS, "copy"):
        return _written(program, computation, made.operands[0], size)
    fused = program.computations.get(made.called or "")
    if fused is not None and fused.root is not None and fused.root.opcode != "tuple":
        return _written(program, fused, fused.root.name, size)
    return size
