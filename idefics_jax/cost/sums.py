"""Adds up what operations and collectives cost over a step."""

from collections import defaultdict
from typing import NamedTuple

from idefics_jax.cost.collectives import Transfer
from idefics_jax.cost.components import COMPONENTS
from idefics_jax.cost.hlo import Instruction
from idefics_jax.cost.operations import Price
from idefics_jax.cost.reading import Collective, Cost, Operation
from idefics_jax.parallel.hardware import Chip


class _Kind(NamedTuple):
    """What collectives are added up by."""

    component: str
    kind: str
    network: str
    group: int
    synchronous: bool


class _Amounts(NamedTuple):
    """As in `Collective`."""

    count: float
    wire_bytes: float
    seconds: float
    exposed_seconds: float


def _kind(transfer: Transfer, synchronous: bool, component: str) -> _Kind:
    return _Kind(component, transfer.kind, transfer.network, transfer.group, synchronous)


def _amounts() -> dict[str, float]:
    return defaultdict(float)


def _largest_first(amounts: dict[str, float]) -> dict[str, float]:
    return dict(sorted(((name, each) for name, each in amounts.items() if each > 0), key=lambda item: -item[1]))


class Sums:
    """Seconds, bytes and FLOPs so far."""

    def __init__(self, chip: Chip, devices: int):
        self.chip, self.devices = chip, devices
        self.estimated = self.adjusted = self.hbm_bytes = self.prefetched = self.flops = 0.0
        self.by_component, self.by_category, self.by_limit = _amounts(), _amounts(), _amounts()
        self.collectives: dict[_Kind, _Amounts] = defaultdict(lambda: _Amounts(0, 0, 0, 0))
        self.background: list[tuple[float, Instruction, Transfer, str]] = []
        self.operations: dict[str, Operation] = {}
        self.unpriced = _amounts()
        self.unknown_loops: list[str] = []

    def operation(self, op: Instruction, price: Price, component: str, times: float) -> float:
        """Adds an operation that runs so many times; returns the seconds of one run."""
        seconds = price.cycles / self.chip.clock
        self.estimated += times * price.estimated_cycles / self.chip.clock
        self.adjusted += times * seconds
        self.hbm_bytes += times * price.hbm_bytes
        self.flops += times * price.flops
        mxu = price.flops / self.chip.flops_per_cycle / price.cycles if price.flops and price.cycles else None
        self._add(op, component, price.category, price.limit, times, seconds, mxu)
        return seconds

    def collective(self, op: Instruction, transfer: Transfer, synchronous: bool, component: str, times: float) -> float:
        """Adds a collective that runs so many times; returns the seconds that one run keeps the device from working."""
        kind, seconds = _kind(transfer, synchronous, component), transfer.seconds(self.chip)
        count, size, total, exposed = self.collectives[kind]
        self.collectives[kind] = _Amounts(
            count + times, size + times * transfer.wire_bytes, total + times * seconds, exposed
        )
        self.hbm_bytes += times * 2 * transfer.wire_bytes  # read where they are sent from, written where they come
        if not synchronous and transfer.network == "ICI":
            self.background.append((seconds, op, transfer, component))
        return self.wait(op, transfer, synchronous, component, seconds if synchronous else 0.0, times)

    def catch_up(self, busy: float, times: float) -> float:
        """Adds the seconds by which the collectives in `background` last longer than the device is busy; returns them.
        The longest is said to be waited for."""
        late = sum(seconds for seconds, *_ in self.background) - busy
        if late > 0:
            _, op, transfer, component = max(self.background, key=lambda each: each[0])
            self.wait(op, transfer, False, component, late, times)
        return max(late, 0.0)

    def read(self, moved: float, busy: float, times: float) -> float:
        """Adds the seconds by which so many bytes between HBM and the device last longer than it is busy; returns them.

        What is copied in the background adds up here, prefetches and collectives."""
        late = moved / self.chip.hbm_bandwidth - busy
        if late > 0:
            self.by_component["other"] += times * late
            self.by_category["prefetch"] += times * late
            self.by_limit["HBM"] += times * late
        return max(late, 0.0)

    def wait(
        self, op: Instruction, transfer: Transfer, synchronous: bool, component: str, seconds: float, times: float
    ) -> float:
        """Adds seconds in which the device waits for a collective; returns them."""
        if seconds > 0:
            kind = _kind(transfer, synchronous, component)
            before = self.collectives[kind]
            self.collectives[kind] = before._replace(exposed_seconds=before.exposed_seconds + times * seconds)
            self._add(op, "collectives", "collective", "interconnect", times, seconds, None)
        return max(seconds, 0.0)

    def prefetch(self, size: float, times: float) -> None:
        """Adds bytes that are copied in the background."""
        self.prefetched += times * size
        self.hbm_bytes += times * size

    def _add(
        self,
        op: Instruction,
        component: str,
        category: str,
        limit: str,
        times: float,
        seconds: float,
        mxu: float | None,
    ) -> None:
        self.by_component[component] += times * seconds
        self.by_category[category] += times * seconds
        self.by_limit[limit] += times * seconds
        before = self.operations.get(op.name)
        runs, total = (before.runs, before.seconds) if before else (0.0, 0.0)
        self.operations[op.name] = Operation(
            op.name, op.op_name, component, category, runs + times, total + times * seconds, mxu
        )

    def cost(self, top: int) -> Cost:
        """The sums, with so many of the most expensive operations."""
        collectives = [Collective(*kind, *amounts) for kind, amounts in self.collectives.items()]
        return Cost(
            chip=self.chip,
            devices=self.devices,
            compute_seconds=self.estimated,
            adjusted_seconds=self.adjusted,
            hbm_bytes=self.hbm_bytes,
            prefetched_bytes=self.prefetched,
            matmul_flops=self.flops,
            by_component={name: self.by_component[name] for name in COMPONENTS if self.by_component[name] > 0},
            by_category=_largest_first(self.by_category),
            by_limit=_largest_first(self.by_limit),
            collectives=tuple(sorted(collectives, key=lambda each: -each.seconds)),
            top=tuple(sorted(self.operations.values(), key=lambda each: -each.seconds)[:top]),
            unpriced=_largest_first(self.unpriced),
            unknown_loops=tuple(self.unknown_loops),
        )
