"""The TPUs that programs are read for, as one JAX device sees them."""

from typing import NamedTuple

GIB = 2**30


class Chip(NamedTuple):
    """What one JAX device has: a chip, or on tpu7x one of a chip's two cores with half of its memory and links.

    Attributes:
        name: as topologies are called, such as "v5e".
        flops_per_cycle: of the matrix units, bfloat16; two per multiply-add.
        clock: cycles per second; the published peak divided by `flops_per_cycle`.
        hbm_bytes: what the compiler lets a program have, as it says of one that is too large (libtpu 0.0.50).
        hbm_bandwidth: bytes per second, published.
        ici_link_bandwidth: bytes per second that one link carries one way: nine tenths of the published rate.
        ici_links: to neighbours within the slice.
        dcn_bandwidth: bytes per second to other slices, a device's share of its host's network.
    """

    name: str
    flops_per_cycle: int
    clock: float
    hbm_bytes: int
    hbm_bandwidth: float
    ici_link_bandwidth: float
    ici_links: int
    dcn_bandwidth: float

    @property
    def peak_flops(self) -> float:
        """bfloat16 FLOPs per second."""
        return self.flops_per_cycle * self.clock

    @property
    def ici_bandwidth(self) -> float:
        """Bytes per second out of the device over all links together."""
        return self.ici_link_bandwidth * self.ici_links

    @property
    def hbm_bytes_per_cycle(self) -> float:
        """What HBM delivers in one cycle."""
        return self.hbm_bandwidth / self.clock


#: By name. Sources: the pages of Google Cloud's TPU documentation on each system's architecture.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", 131072, 1.5e9, int(15.75 * GIB), 819e9, 45e9, 4, 3.125e9),
        Chip("v5p", 262144, 1.75e9, int(95.73 * GIB), 2765e9, 90e9, 6, 6.25e9),
        Chip("v6e", 524288, 1.75e9, int(31.24 * GIB), 1640e9, 90e9, 4, 12.5e9),
        Chip("tpu7x", 524288, 2.2e9, int(94.74 * GIB), 3690e9, 45e9, 6, 6.25e9),
    )
}

#: What `jax.Device.device_kind` calls them.
DEVICE_KINDS = {
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
}


def chip(name: str) -> Chip:
    """The chip of a topology ("v5e:16x16"), of a name in `CHIPS`, or of a JAX device's kind ("TPU v5 lite").

    Raises:
        ValueError: it is none that is known here.
    """
    short = DEVICE_KINDS.get(name, name.partition(":")[0])
    if short not in CHIPS:
        raise ValueError(f"{short} is no TPU that costs can be read for; known: {', '.join(CHIPS)}.")
    return CHIPS[short]
