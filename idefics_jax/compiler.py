"""Options that XLA compiles programs for TPUs with, chip by chip, where its defaults are not the best."""

#: What each is for, measured on the training step of idefics-9b (`python -m benchmarks.pods`).
_TRAINING = {
    # Weights are gathered whole before a product, while the one before it runs. The default, above a size, multiplies
    # piece by piece as the pieces arrive, which leaves the matrix units half idle.
    "xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000",
    # Fast memory that one operation may use: larger tiles, and so fewer readings of the same operands from HBM.
    "xla_tpu_scoped_vmem_limit_kib": "65536",
}

#: By the names of `idefics_jax.cost.CHIPS`.
TRAINING = {"v5e": _TRAINING, "v5p": _TRAINING, "v6e": _TRAINING, "tpu7x": {}}
