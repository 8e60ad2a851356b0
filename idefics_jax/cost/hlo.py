"""The text of a compiled, scheduled XLA program, as `jax.stages.Compiled.as_text()` gives it, in pieces.

Only what the cost reading needs is taken apart: instructions, their operands and result shapes. Other attributes are
looked up in an instruction's text when they are asked for.
"""

import re
from collections.abc import Iterator
from functools import cache, cached_property, lru_cache
from math import prod
from typing import NamedTuple

_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{\s*$")
_END = re.compile(r"\}(, execution_thread=\S+)?\s*$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (\S.*?) ([\w\-]+)\(")
_OPERAND = re.compile(r"%([\w.\-]+)")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<= ]*)\](\{[^}]*\})?")
_ESTIMATE = re.compile(r'"window_config":\{[^}]*?"estimated_cycles":"?(\d+)')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_BITS = re.compile(r"[a-z]+(\d+)")

#: Stands for "no estimate", as 2**63 - 1, on what runs on a SparseCore.
_NO_ESTIMATE = 1 << 62


class Array(NamedTuple):
    """One array of a result: its dtype as XLA calls it, its dimensions, and whether it is in HBM."""

    dtype: str
    dims: tuple[int, ...]
    in_hbm: bool

    @property
    def itemsize(self) -> float:
        """Bytes of a number."""
        return _bytes_of(self.dtype)

    @property
    def bytes(self) -> float:
        """Without the padding of its tiles."""
        return prod(self.dims) * self.itemsize


@cache
def _bytes_of(dtype: str) -> float:
    if dtype in ("token", "opaque"):
        return 0
    bits = _BITS.match(dtype)  # "bf16", "s4", "f8e4m3fn", ...; "pred" has no number
    return int(bits[1]) / 8 if bits else 1


@lru_cache(1 << 16)
def arrays(shape: str) -> tuple[Array, ...]:
    """The arrays in a shape, of which a tuple has several: "(bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, u32[])".

    A memory space, `S(1)` and so on in the layout, is on the chip or on the host: not HBM.
    """
    return tuple(
        Array(dtype, tuple(int(size) for size in re.findall(r"\d+", dims)), "S(" not in layout)
        for dtype, dims, layout in _ARRAY.findall(shape)
    )


def shape_bytes(shape: str, hbm_only: bool = False) -> float:
    """Bytes of a shape's arrays; `hbm_only`: of those that are in HBM."""
    return sum(array.bytes for array in arrays(shape) if array.in_hbm or not hbm_only)


class Instruction(NamedTuple):
    """One instruction.

    Attributes:
        name: without the "%".
        shape: of its result, as text.
        opcode: such as "fusion".
        operands: names of instructions of the same computation.
        text: all of it.
        root: whether the computation's result is its own.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    text: str
    root: bool

    def attribute(self, key: str) -> str | None:
        """The name or number behind `key=`."""
        found = _attribute(key).search(self.text)
        return found[1] if found else None

    @property
    def called(self) -> str | None:
        """The computation that a fusion is made of."""
        return self.attribute("calls") if self.opcode == "fusion" else None

    @property
    def number(self) -> int:
        """Of a parameter."""
        return int(self.text.partition(" parameter(")[2].partition(")")[0])

    @property
    def constant(self) -> int | None:
        """The value of a whole-number scalar constant."""
        value = self.text.partition(" constant(")[2].partition(")")[0]
        return int(value) if self.opcode == "constant" and re.fullmatch(r"-?\d+", value) else None

    @property
    def estimated_cycles(self) -> int | None:
        """The compiler's own estimate; None where it made none."""
        found = _ESTIMATE.search(self.text)
        return int(found[1]) if found and int(found[1]) < _NO_ESTIMATE else None

    @property
    def target(self) -> str:
        """What a custom call calls, "" if it is none."""
        found = _TARGET.search(self.text) if self.opcode == "custom-call" else None
        return found[1] if found else ""

    @property
    def op_name(self) -> str:
        """JAX's scopes and primitive, such as "jit(f)/vision/dot_general"; "" where there is none."""
        found = _OP_NAME.search(self.text)
        return found[1] if found else ""


@cache
def _attribute(key: str) -> re.Pattern:
    return re.compile(rf"\b{key}=%?([\w.\-]+)")


class Computation:
    """Instructions in the order in which they run, and where to find them."""

    def __init__(self, name: str):
        self.name = name
        self.instructions: list[Instruction] = []

    @cached_property
    def by_name(self) -> dict[str, Instruction]:
        """Instructions by name."""
        return {instruction.name: instruction for instruction in self.instructions}

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """The instructions that have one, by its name, as an operand."""
        users: dict[str, list[Instruction]] = {}
        for instruction in self.instructions:
            for operand in dict.fromkeys(instruction.operands):
                users.setdefault(operand, []).append(instruction)
        return users

    @cached_property
    def parameters(self) -> dict[int, Instruction]:
        """Parameters by number."""
        return {each.number: each for each in self.instructions if each.opcode == "parameter"}

    @cached_property
    def root(self) -> Instruction | None:
        """What the computation results in."""
        return next((each for each in reversed(self.instructions) if each.root), None)


class Program(NamedTuple):
    """A program's computations by name, and the name of that which starts it."""

    computations: dict[str, Computation]
    entry: str

    def within(self, computation: str) -> Iterator[tuple[Computation, Instruction]]:
        """A computation's instructions, each fusion followed by what it is made of."""
        owner = self.computations[computation]
        for instruction in owner.instructions:
            yield owner, instruction
            if instruction.called in self.computations:
                yield from self.within(instruction.called)


def parse(text: str) -> Program:
    """The program that a text describes.

    Raises:
        ValueError: there is no program in it.
    """
    computations: dict[str, Computation] = {}
    entry, current, lines = "", None, []

    def close() -> None:
        if current is not None and lines:
            current.instructions.append(_instruction("\n".join(lines)))
        lines.clear()

    for line in text.splitlines():
        if current is None:
            if found := _HEADER.match(line):
                current = computations[found[2]] = Computation(found[2])
                entry = found[2] if found[1] else entry
        elif _END.match(line):
            close()
            current = None
        elif _INSTRUCTION.match(line):
            close()
            lines.append(line)
        elif lines:  # an instruction's text may have several lines: a Pallas kernel's does
            lines.append(line)
    if not entry:
        raise ValueError("This text has no ENTRY computation: it is no compiled XLA program.")
    return Program(computations, entry)


def _instruction(text: str) -> Instruction:
    found = _INSTRUCTION.match(text)
    assert found, text
    operands = text[found.end() : text.find(")", found.end())]
    return Instruction(found[2], found[3], found[4], tuple(_OPERAND.findall(operands)), text, found[1] is not None)
