"""Reads a compiled program from its start, each loop as often as it runs, and adds up what its operations cost."""

import re

from idefics_jax.cost import collectives
from idefics_jax.cost.collectives import KINDS, Transfer
from idefics_jax.cost.hlo import Computation, Instruction, Program, arrays, parse
from idefics_jax.cost.loops import trip_count
from idefics_jax.cost.operations import KernelCycles, component_of, price, price_kernel
from idefics_jax.cost.reading import Cost
from idefics_jax.cost.sums import Sums
from idefics_jax.cost.traffic import hbm_bytes
from idefics_jax.parallel.hardware import Chip

#: Nothing is done for these.
_FREE = (
    "after-all",
    "bitcast",
    "constant",
    "domain",
    "get-tuple-element",
    "opt-barrier",
    "parameter",
    "partition-id",
    "recv",
    "replica-id",
    "tuple",
)
#: Custom calls that do nothing.
_FREE_TARGETS = ("AllocateBuffer", "AssumeGatherIndicesInBound", "ConcatBitcast", "SliceId")
_PREFETCHES = ("copy-start", "slice-start", "dynamic-slice-start")

_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_OFFLOAD = re.compile(r'"offload":"OFFLOAD_(\w+)"')
_NUMBERED = re.compile(r"[.\d]+$")


def analyze(
    compiled_text: str,
    chip: Chip,
    devices: int,
    *,
    kernel_cycles: KernelCycles | None = None,
    turn: bool = False,
    turns: int | None = None,
    top: int = 25,
) -> Cost:
    """What a program compiled for TPUs costs, by its text.

    Args:
        compiled_text: from `jax.stages.Compiled.as_text()`.
        chip: that it is compiled for.
        devices: in a slice: the size of a collective's groups where the text does not say.
        kernel_cycles: those of a Pallas kernel that carries no cost estimate on a chip, or None; by default such
            kernels count as nothing and are listed in `Cost.unpriced`.
        turn: count one turn of the program's loop alone, the one whose length is not known before it runs, such as a
            step of decoding.
        turns: how often loops run whose length is not known before; by default they count once, and are listed in
            `Cost.unknown_loops`.
        top: how many of the most expensive operations to name.

    Raises:
        ValueError: the text is no compiled program's, or there is no such loop.
    """
    walk = _Walk(parse(compiled_text), Sums(chip, devices), kernel_cycles, turns)
    for part in _turn(walk.program) if turn else (walk.program.entry,):
        walk.run(part, 1, None)
    return walk.sums.cost(top)


def _turn(program: Program) -> list[str]:
    """The computations that one turn of the outermost loop of unknown length runs."""
    entry = program.computations[program.entry]
    for op in entry.instructions:
        if op.opcode == "while" and trip_count(program, entry, op) is None:
            return [part for name in ("body", "condition") if (part := op.attribute(name))]
    raise ValueError("The program has no loop whose length is not known before it runs.")


class _Walk:
    """Goes through the operations of a program and adds them to `sums`."""

    def __init__(self, program: Program, sums: Sums, kernel_cycles: KernelCycles | None, turns: int | None):
        self.program, self.sums, self.kernel_cycles, self.turns = program, sums, kernel_cycles, turns

    def run(self, name: str, times: float, around: str | None) -> float:
        """Walks through a computation that runs so many times; returns the seconds of one run.

        Transfers between slices wait for each other, and what needs them waits for them: a clock, and the time at
        which the network is free, say for how long. Those within a slice are hidden as far as the computation that
        begins them has other work. HBM's bytes count for the computation that moves them.

        Args:
            name: of the computation.
            times: it runs.
            around: the component of the loop that it is in.
        """
        now, network_free, moved = 0.0, 0.0, self.sums.hbm_bytes
        outer, self.sums.background = self.sums.background, []
        coming: dict[str, tuple[Transfer, str, float]] = {}
        owner = self.program.computations[name]
        for op in owner.instructions:
            if op.opcode == "send":
                if sent := collectives.across_slices(owner, op):
                    component = self.component(owner, op, around)
                    self.sums.collective(op, sent, False, component, times)
                    network_free = max(now, network_free) + sent.seconds(self.sums.chip)
                    coming[collectives.rendezvous(op)] = sent, component, network_free
            elif op.opcode == "recv-done":
                key = collectives.rendezvous(owner.by_name[op.operands[0]])
                if key in coming:
                    sent, component, arrival = coming.pop(key)
                    now += self.sums.wait(op, sent, False, component, arrival - now, times)
            elif op.opcode not in _FREE:
                now += self.operation(owner, op, times, around)
        for (
            sent,
            component,
            arrival,
        ) in coming.values():  # received by the next run, which can start no sooner than they come
            now += self.sums.wait(owner.instructions[-1], sent, False, component, arrival - now, times)
        now += self.sums.catch_up(now, times)
        now += self.sums.read((self.sums.hbm_bytes - moved) / times, now, times)
        self.sums.background = outer
        return now

    def component(self, owner: Computation, op: Instruction, around: str | None) -> str:
        """What `op` of `owner` is of: what it says, or what it is in."""
        return component_of(self.program, owner, op) or around or "other"

    def operation(self, owner: Computation, op: Instruction, times: float, around: str | None) -> float:
        """Adds `op` of `owner`, which runs so many times; returns the seconds of one run."""
        if op.opcode == "while":
            return self.loop(owner, op, times, around)
        if op.opcode == "conditional":  # one branch runs; the last is that for True
            listed = _BRANCHES.search(op.text)
            branch = listed[1].rpartition("%")[2] if listed else op.attribute("true_computation")
            return self.run(branch, times, around) if branch else 0.0
        if op.opcode == "call":
            return self.run(op.attribute("to_apply") or "", times, around)
        if op.opcode.removesuffix("-start") in KINDS:
            sent = collectives.transfer(owner, op, self.sums.devices)
            synchronous = not op.opcode.endswith("-start")
            return self.sums.collective(op, sent, synchronous, self.component(owner, op, around), times)
        if op.opcode in _PREFETCHES:
            # The result is told beside what a slice is taken from, which comes first.
            self.sums.prefetch(arrays(op.shape)[0 if op.opcode == "copy-start" else 1].bytes, times)
            return 0.0
        if op.opcode.endswith("-start"):
            return self.offloaded(owner, op, times, around)
        if op.opcode.endswith(("-done", "-update")):
            return 0.0
        if op.opcode == "custom-call":
            return self.custom_call(owner, op, times, around)
        return self.computed(owner, op, times, around)

    def loop(self, owner: Computation, op: Instruction, times: float, around: str | None) -> float:
        """Adds a `while`."""
        trips = trip_count(self.program, owner, op)
        trips = self.turns if trips is None else trips
        if trips is None:
            self.sums.unknown_loops.append(op.name)
            trips = 1
        if trips == 0:
            return 0.0
        around = component_of(self.program, owner, op) or around
        parts = (op.attribute("body"), op.attribute("condition"))
        return trips * sum(self.run(part, times * trips, around) for part in parts if part)

    def offloaded(self, owner: Computation, op: Instruction, times: float, around: str | None) -> float:
        """Adds what runs beside the TensorCore, on a SparseCore; only collectives are priced."""
        called = op.attribute("calls") or op.attribute("to_apply") or ""
        inside = self.program.within(called) if called in self.program.computations else ()
        found = [(place, each) for place, each in inside if each.opcode.removesuffix("-start") in KINDS]
        for place, each in found:
            sent = collectives.transfer(place, each, self.sums.devices)
            self.sums.collective(op, sent, False, self.component(owner, op, around), times)
        if not found:
            kind = _OFFLOAD.search(op.text)
            self.sums.unpriced[f"SparseCore {kind[1].lower()}" if kind else op.opcode] += times
        return 0.0

    def custom_call(self, owner: Computation, op: Instruction, times: float, around: str | None) -> float:
        """Adds a Pallas kernel, or notes a call of something else."""
        if op.target != "tpu_custom_call":
            if op.target not in _FREE_TARGETS:
                self.sums.unpriced[op.target] += times
            return 0.0
        found = price_kernel(self.program, owner, op, self.sums.chip, self.kernel_cycles)
        if found is None:
            self.sums.unpriced[f"Pallas kernel {_NUMBERED.sub('', op.name)}"] += times
            self.sums.hbm_bytes += times * hbm_bytes(self.program, owner, op)
            return 0.0
        return self.sums.operation(op, found, self.component(owner, op, around), times)

    def computed(self, owner: Computation, op: Instruction, times: float, around: str | None) -> float:
        """Adds an operation of the TensorCore's, and the collective that a fusion may have in it."""
        waiting, fused = 0.0, collectives.in_fusion(self.program, op, self.sums.devices) if op.called else None
        component = self.component(owner, op, around)
        if fused is not None and fused.part == "start":
            return self.sums.collective(op, fused.transfer, False, component, times)
        if fused is not None and fused.part == "done":
            return 0.0
        if fused is not None and fused.part == "whole":
            waiting = self.sums.collective(op, fused.transfer, True, component, times)
            if op.estimated_cycles is None:
                return waiting
        cost = price(self.program, owner, op, self.sums.chip)
        return waiting + self.sums.operation(op, cost, component, times)
