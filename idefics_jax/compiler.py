"""Options that XLA compiles programs with, where its defaults are not the best."""

import os
import re

import jax

from idefics_jax.cost.chips import DEVICE_KINDS

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

#: By the names of `idefics_jax.cost.CHIPS`.
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
    """Of a training step in which each device has so many tokens at a time, by a name of `idefics_jax.cost.CHIPS`."""
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
