"""What devices send each other: bytes on the wire of one device, and the seconds that they take.

Within a slice the bytes go over all of a device's links at once, at full speed: optimistic, since a ring along one mesh
axis uses the links of that axis only. A `collective-permute` has one receiver, and counts as half of two that go both
ways along a side at once, as rings do (`parallel.collectives`). Between slices the bytes go over the hosts'
network (DCN), of which a device has its share; there a collective is a `send` and a `recv` that the hosts answer.
"""

import re
from math import prod
from typing import NamedTuple

from idefics_jax.cost.hlo import Computation, Instruction, Program, shape_bytes
from idefics_jax.parallel.hardware import Chip

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
    "collective-broadcast",
)

_LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_IOTA = re.compile(r"replica_groups=\[\d+,(\d+)\]<=")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:\s*\{([^}]*)\})?")
_MESH_AXIS = re.compile(r"'([^']+)'=(\d+)")
_USED_AXIS = re.compile(r"'([^']+)'(?::\(\d+\)(\d+))?")
_DCN_KIND = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_DCN_SLICES = re.compile(r'_xla_megascale_target="?\{+([\d,]+)\}')
_DCN_KEY = re.compile(r'_xla_host_transfer_rendezvous="([^"]*)"')


class Transfer(NamedTuple):
    """One collective operation.

    Attributes:
        kind: one of `KINDS`.
        network: "ICI", within a slice, or "DCN", between slices.
        group: how many devices, or slices, take part.
        wire_bytes: what one device sends.
    """

    kind: str
    network: str
    group: int
    wire_bytes: float

    def seconds(self, chip: Chip) -> float:
        """How long the bytes take, without latency."""
        if self.network == "DCN":
            return self.wire_bytes / chip.dcn_bandwidth
        along_a_side = 2 * chip.ici_link_bandwidth
        return self.wire_bytes / (along_a_side if self.kind == "collective-permute" else chip.ici_bandwidth)


def wire_bytes(kind: str, group: int, given: float, result: float) -> float:
    """Bytes that one device sends, by the ring algorithms.

    Args:
        kind: one of `KINDS`.
        group: devices that take part.
        given: bytes of a device's operands.
        result: bytes of its result.
    """
    share = (group - 1) / group
    if kind == "all-gather":
        return share * result
    if kind == "all-reduce":
        return 2 * share * given
    return given if kind == "collective-permute" else share * given


def transfer(owner: Computation, op: Instruction, devices: int, kind: str | None = None) -> Transfer:
    """The collective `op` of `owner`, or its start, within a slice.

    Args:
        owner: where the operands are.
        op: with an opcode of `KINDS`, or such a one and "-start".
        devices: in a group that is not written out.
        kind: another kind than the opcode says.
    """
    given = sum(shape_bytes(owner.by_name[name].shape) for name in op.operands if name in owner.by_name)
    result = shape_bytes(op.shape)
    if op.opcode == "all-gather-start":
        result -= given  # its result is a tuple of what it is given and what it makes
    kind = kind or op.opcode.removesuffix("-start")
    group = group_size(op.text, devices)
    return Transfer(kind, "ICI", group, wire_bytes(kind, group, given, result))


def group_size(text: str, devices: int) -> int:
    """How many devices a collective's groups have; `devices` where the text does not say."""
    if found := _LISTED.search(text):
        return found[1].count(",") + 1
    if found := _IOTA.search(text):
        return int(found[1])
    if found := _MESH.search(text):  # mesh['data'=2,'fsdp'=8] {'fsdp'}; an axis may be used in part: 'fsdp':(1)4
        sizes = {name: int(size) for name, size in _MESH_AXIS.findall(found[1])}
        if found[2] is None:
            return prod(sizes.values())
        return prod(int(part) if part else sizes[name] for name, part in _USED_AXIS.findall(found[2]))
    return devices


def across_slices(owner: Computation, send: Instruction) -> Transfer | None:
    """The transfer between slices that a `send` of `owner` starts; None if it is another one, say to the host."""
    found = _DCN_KIND.search(send.text)
    if found is None:
        return None
    kind = {"ONE_TO_ONE": "collective-permute"}.get(found[1], found[1].lower().replace("_", "-"))
    slices = _DCN_SLICES.search(send.text)
    group = slices[1].count(",") + 1 if slices else 2
    given = shape_bytes(owner.by_name[send.operands[0]].shape)
    return Transfer(kind, "DCN", group, wire_bytes(kind, group, given, given * group))


def rendezvous(op: Instruction) -> str:
    """What a `send` and its `recv` have in common; "" if they are not between slices."""
    found = _DCN_KEY.search(op.text)
    return found[1] if found else ""


class Fused(NamedTuple):
    """A collective inside a fusion: `part` says whether all of it is there, or its "start", "done" or "middle"."""

    transfer: Transfer
    part: str


def in_fusion(program: Program, fusion: Instruction, devices: int) -> Fused | None:
    """The collective that a fusion does, or has running while it computes; None without one."""
    inside = list(program.within(fusion.called or ""))
    found = next(((owner, each) for owner, each in inside if each.opcode in KINDS), None)
    if found is None:
        return None
    targets, (owner, op) = {each.target for _, each in inside}, found
    if "AsyncCollectiveStart" in targets:
        return Fused(transfer(owner, op, devices), "start")
    if "AsyncCollectiveDone" in targets:
        return Fused(transfer(owner, op, devices), "done")
    if '"continuation_config"' in fusion.text or "async_collective_fusion" in (fusion.called or ""):
        return Fused(transfer(owner, op, devices), "middle")
    sliced = op.opcode == "all-reduce" and any(each.opcode == "dynamic-slice" for _, each in inside)
    return Fused(transfer(owner, op, devices, "reduce-scatter" if sliced else None), "whole")
