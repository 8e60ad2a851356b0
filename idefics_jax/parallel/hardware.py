"""TPUs and GPUs by their published numbers, and the options that XLA compiles for them with."""

import os
import re
from typing import NamedTuple

import jax

GIB = 2**30


class Chip(NamedTuple):
    """A TPU as one JAX device: a chip, or on tpu7x one of its two cores with half of its memory and links.

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
        """Bytes that HBM delivers in one cycle."""
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


class Gpu(NamedTuple):
    """A GPU by its published numbers.

    Attributes:
        kind: as `jax.Device.device_kind` calls it.
        capability: the major number of its compute capability; 8 is Ampere, 9 Hopper, 10 Blackwell.
        cores: streaming multiprocessors.
        hbm_bytes: of memory; a process gets the share that `XLA_PYTHON_CLIENT_MEM_FRACTION` says.
        hbm_bandwidth: bytes per second.
        cache_bytes: of the second level.
        clock, matrix_clock: GHz.
        matrix_rate: multiply-adds of bfloat16 per cycle and matrix unit, of which a core has four.
        links: NVLinks to other GPUs of the host.
    """

    kind: str
    capability: int
    cores: int
    hbm_bytes: int
    hbm_bandwidth: int
    cache_bytes: int
    clock: float
    matrix_clock: float
    matrix_rate: int
    links: int


#: By name. Sources: NVIDIA's data sheets, and `xla/backends/gpu/target_config/specs` in OpenXLA.
GPUS = {
    "a100": Gpu("NVIDIA A100-SXM4-80GB", 8, 108, 85100068864, 2039040000000, 41943040, 1.41, 1.41, 256, 12),
    "h100": Gpu("NVIDIA H100 80GB HBM3", 9, 132, 84942979072, 3352320000000, 52428800, 1.98, 1.8295201, 512, 18),
    "h200": Gpu("NVIDIA H200", 9, 132, 151397597184, 4800000000000, 52428800, 1.98, 1.8295201, 512, 18),
    "b200": Gpu("NVIDIA B200", 10, 148, 191514411008, 7672320000000, 132644864, 1.965, 1.8353101, 1024, 18),
}


# What each is for, by what the compiler predicts of idefics' training step (`python -m benchmarks.pods`).
_TRAINING: dict[str, str | bool] = {
    # Weights are gathered whole before a product, while the one before it runs. The default, above a size, multiplies
    # piece by piece as the pieces arrive, which leaves the matrix units half idle.
    "xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000",
    # Fast memory that one operation may use: larger tiles, and so fewer readings of the same operands from HBM.
    "xla_tpu_scoped_vmem_limit_kib": "65536",
}
# Without SparseCores, gathers of weights run beside products, which are to be more than one at a time: a layer's first
# products are too short for the gather of an MLP's.
_ASYNCHRONOUS: dict[str, str | bool] = {"xla_max_concurrent_async_all_gathers": "2"}
# Of few tokens, products are shorter than gathers in the MLP too.
_FEW_TOKENS, _FOR_FEW_TOKENS = 1024, {"xla_max_concurrent_async_all_gathers": "3"}
# SparseCores gather weights and add up gradients while the rest of the chip computes; else it waits.
_SPARSE_CORES: dict[str, str | bool] = {
    "xla_tpu_enable_sparse_core_collective_offload_all_gather": True,
    "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": True,
}

#: By the names of `CHIPS`.
TRAINING: dict[str, dict[str, str | bool]] = {
    "v5e": _TRAINING | _ASYNCHRONOUS,
    "v5p": _TRAINING | _SPARSE_CORES,
    "v6e": _TRAINING | _SPARSE_CORES | {"xla_tpu_scoped_vmem_limit_kib": "98304"},  # of twice the matrix units
    "tpu7x": {},
}


def _and_users(passes: str) -> str:
    """Passes to disable, beside those that the user does: an option given to a program replaces that of XLA_FLAGS."""
    (*_, users) = ["", *re.findall(r"--xla_disable_hlo_passes=(\S+)", os.environ.get("XLA_FLAGS", ""))]
    return ",".join(filter(None, (users.strip("\"'"), passes)))


#: For programs that add a token at a time; of use on GPUs, and passed over elsewhere.
DECODING: dict[str, str | bool] = {
    # By default products of one input become one, and their weights are joined for it in memory at every step: where
    # eight H100s share each layer, a step then moves 1.86 times the bytes that it must, instead of 1.13 times.
    "xla_gpu_dot_merger_threshold_mb": "0",
    # By default the product of one row and fewer than 10 million weights is written to memory, rounded to bfloat16,
    # before it is summed: for one prompt on eight H100s 1.91 times the bytes, instead of 1.02 times.
    "xla_disable_hlo_passes": _and_users("dot-strength-reduction"),
}


def options(chip: str, tokens: int) -> dict[str, str | bool]:
    """Return the options of a training step for a chip's name and the tokens that each device has at a time."""
    few = chip == "v5e" and tokens <= _FEW_TOKENS
    return TRAINING.get(chip, {}) | (_FOR_FEW_TOKENS if few else {})


def training_options(tokens: int) -> dict[str, str | bool] | None:
    """For `jax.jit` of a training step, on the devices that there are; None where XLA's defaults do, as on GPUs.

    GPUs need none: since JAX 0.10 collectives run beside products by default, and XLA measures whether Triton or cuBLAS
    multiplies faster. (Without a GPU it cannot: see `idefics_jax.cost.gpus.UNTUNED`.)
    """
    return options(DEVICE_KINDS.get(jax.devices()[0].device_kind, ""), tokens) or None


def drawing_options() -> dict[str, str | bool] | None:
    """Return options for the program that draws random weights, which runs once and is large.

    On a CPU, XLA's optimizations of it take four to eight times as long as all else (JAX 0.10.2 and 0.12.0).
    """
    return {"xla_backend_optimization_level": "0"} if jax.default_backend() == "cpu" else None
