"""What a compiled program is found to cost."""

from typing import NamedTuple

from idefics_jax.parallel.hardware import Chip


class Collective(NamedTuple):
    """All collectives of one kind in a step, of one component of the model.

    Attributes:
        component: one of `components.COMPONENTS`, "other" where the compiler does not say.
        kind: such as "all-gather".
        network: "ICI", within a slice, or "DCN", between slices.
        group: how many devices, or slices, take part in each.
        synchronous: whether nothing else runs meanwhile.
        count: how many there are.
        wire_bytes: what one device sends.
        seconds: at the network's full bandwidth.
        exposed_seconds: of those, the ones in which the device does nothing else.
    """

    component: str
    kind: str
    network: str
    group: int
    synchronous: bool
    count: float
    wire_bytes: float
    seconds: float
    exposed_seconds: float


class Operation(NamedTuple):
    """One operation of the program, all of its runs together.

    Attributes:
        name: the compiler's.
        op_name: JAX's.
        component: one of `components.COMPONENTS`.
        category: as in `Cost.by_category`.
        runs: how often it runs in a step.
        seconds: of all of them.
        mxu: the share of the matrix units' peak that its products reach; None where it has none.
    """

    name: str
    op_name: str
    component: str
    category: str
    runs: float
    seconds: float
    mxu: float | None


class Cost(NamedTuple):
    """An estimate of one step of a program, on each of its devices; see the package's docstring for what it leaves out.

    Attributes:
        chip: what a device is.
        devices: in a slice.
        compute_seconds: by the compiler's own estimates, as if HBM and network were no limit.
        adjusted_seconds: held against HBM: what the device is busy, collectives apart.
        hbm_bytes: read from HBM and written to it, prefetches and collectives included.
        prefetched_bytes: of those, what is copied in the background.
        matmul_flops: of the matrix products that the compiler emitted, with those that are computed twice.
        by_component: seconds by component of the model; they add up to `step_seconds`.
        by_category: seconds by kind of operation, "collective" and "prefetch" included; they add up to `step_seconds`.
        by_limit: seconds by what limits them, "compute", "HBM" or "interconnect"; they add up to `step_seconds`.
        collectives: the most expensive first.
        top: the most expensive operations, synchronous collectives included.
        unpriced: how often what runs that has no estimate and counts as nothing: kernels, SparseCore programs.
        unknown_loops: loops whose lengths are not to be seen; they count once.
    """

    chip: Chip
    devices: int
    compute_seconds: float
    adjusted_seconds: float
    hbm_bytes: float
    prefetched_bytes: float
    matmul_flops: float
    by_component: dict[str, float]
    by_category: dict[str, float]
    by_limit: dict[str, float]
    collectives: tuple[Collective, ...]
    top: tuple[Operation, ...]
    unpriced: dict[str, float]
    unknown_loops: tuple[str, ...]

    @property
    def hbm_seconds(self) -> float:
        """What HBM needs for all of the bytes at its full bandwidth; no step is shorter."""
        return self.hbm_bytes / self.chip.hbm_bandwidth

    @property
    def collective_seconds(self) -> float:
        """Of all collectives, hidden or not."""
        return sum(each.seconds for each in self.collectives)

    @property
    def exposed_seconds(self) -> float:
        """Of the collectives that nothing hides: the synchronous ones, waits for other slices, and what there is more
        of the rest than of anything to hide it behind."""
        return sum(each.exposed_seconds for each in self.collectives)

    @property
    def step_seconds(self) -> float:
        """Of a step: busy, waiting for HBM where prefetches and collectives keep it longer, and for collectives."""
        return self.adjusted_seconds + self.by_category.get("prefetch", 0.0) + self.exposed_seconds

    @property
    def bound(self) -> str:
        """What limits most of the step: "compute", "HBM" or "interconnect"."""
        if self.collective_seconds > self.adjusted_seconds:
            return "interconnect"  # what is hidden has not enough to hide behind
        return max(self.by_limit, key=lambda limit: self.by_limit[limit]) if self.by_limit else "compute"

    def mfu(self, model_flops: float) -> float:
        """The share of the devices' peak that `model_flops`, a step's on one device, make up."""
        return model_flops / self.chip.peak_flops / self.step_seconds
