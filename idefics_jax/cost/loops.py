"""How often the loops of a program run: `jax.lax.scan` and `fori_loop` become `while`, their lengths constants."""

import re
from collections.abc import Callable
from typing import NamedTuple

from idefics_jax.cost.hlo import Computation, Instruction, Program

_KNOWN = re.compile(r'known_trip_count"?:\{"n":"?(\d+)')
_SAME_VALUE = ("copy", "bitcast", "convert", "copy-start", "copy-done")


class _Place(NamedTuple):
    """An element of the tuple that a loop carries."""

    index: int


_Value = int | _Place | None
_AtStart = Callable[[_Value], int | None]  # what a value is before the first iteration


def trip_count(program: Program, owner: Computation, loop: Instruction) -> int | None:
    """How often the `while` instruction `loop` of `owner` runs; None if that is not to be seen.

    The condition compares a counter of the loop's tuple with a bound. Both it and the counter's step may be constants,
    or be carried along in the tuple (the compiler's "wide" loops), or be found inside fusions.
    """
    if known := _KNOWN.search(loop.text):
        return int(known[1])
    condition, body = loop.attribute("condition"), loop.attribute("body")
    start = owner.by_name.get(loop.operands[0])
    if condition not in program.computations or body not in program.computations or start is None:
        return None

    def at_start(value: _Value) -> int | None:
        if not isinstance(value, _Place):
            return value
        if start.opcode != "tuple" or value.index >= len(start.operands):
            return None
        found = _value(owner, start.operands[value.index], {})
        return found if isinstance(found, int) else None

    compared = _comparison(program, program.computations[condition], {})
    if compared is None:
        return None
    direction, counter, bound = compared
    if direction in ("GT", "GE"):
        direction, counter, bound = {"GT": "LT", "GE": "LE"}[direction], bound, counter
    last = at_start(bound)
    if not isinstance(counter, _Place) or last is None or direction == "EQ":
        return None
    step = _step(program, program.computations[body], counter.index, at_start)
    length = last - (at_start(counter) or 0) + (direction == "LE")
    return max(0, -(-length // step))


def _value(computation: Computation, name: str, arguments: dict[int, _Value]) -> _Value:
    """What is known of a scalar: a constant, or which element of the loop's tuple it is."""
    instruction = computation.by_name.get(name)
    while instruction is not None and instruction.opcode in _SAME_VALUE:
        instruction = computation.by_name.get(instruction.operands[0])
    if instruction is None:
        return None
    if instruction.opcode == "get-tuple-element":
        index = instruction.attribute("index")
        return _Place(int(index)) if index else None
    if instruction.opcode == "parameter":
        return arguments.get(instruction.number)
    return instruction.constant


def _arguments(computation: Computation, caller: Instruction, outer: dict[int, _Value]) -> dict[int, _Value]:
    return {number: _value(computation, name, outer) for number, name in enumerate(caller.operands)}


def _comparison(
    program: Program, computation: Computation, arguments: dict[int, _Value]
) -> tuple[str, _Value, _Value] | None:
    """The direction and the two sides of a loop condition's comparison."""
    for each in computation.instructions:
        if each.opcode == "compare":
            left, right = (_value(computation, operand, arguments) for operand in each.operands)
            return each.attribute("direction") or "", left, right
        called = each.called or (each.attribute("to_apply") if each.opcode == "call" else None)
        if called in program.computations:
            inner = _arguments(computation, each, arguments)
            if found := _comparison(program, program.computations[called], inner):
                return found
    return None


def _step(program: Program, body: Computation, index: int, at_start: _AtStart) -> int:
    """What an iteration adds to a loop's counter; 1 where that is not to be seen."""
    if body.root is None or body.root.opcode != "tuple" or index >= len(body.root.operands):
        return 1
    return _added(program, body, body.root.operands[index], {}, index, at_start) or 1


def _added(
    program: Program,
    computation: Computation,
    name: str,
    arguments: dict[int, _Value],
    counter: int,
    at_start: _AtStart,
) -> int:
    """The sum of the constants that are added on the way to a value; a loop unrolled twice adds two."""
    instruction = computation.by_name.get(name)
    while instruction is not None and instruction.opcode in _SAME_VALUE:
        instruction = computation.by_name.get(instruction.operands[0])
    if instruction is None:
        return 0
    called = program.computations.get(instruction.called or "")
    if called is not None:
        inner = _arguments(computation, instruction, arguments)
        name = next((each.name for each in called.instructions if each.opcode == "add"), "")
        return _added(program, called, name, inner, counter, at_start)
    if instruction.opcode != "add":
        return 0
    total = 0
    for operand in instruction.operands:
        value = _value(computation, operand, arguments)
        if value is None:
            total += _added(program, computation, operand, arguments, counter, at_start)
        elif value != _Place(counter):
            total += at_start(value) or 0
    return total
