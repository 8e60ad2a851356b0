"""How many floating-point operations a training step needs, and how many a device can do: their ratio is the MFU."""

from collections.abc import Callable

from idefics_jax.config import IdeficsConfig
from idefics_jax.cost.flops import flops_by_part

from .config import TrainConfig
from .trainable import trains


def run_flops(config: TrainConfig, model: IdeficsConfig, paths: tuple[str, ...]) -> float:
    """FLOPs of one step of a run over all devices, with as many images as its rows can have.

    Args:
        paths: of the model's weights, adapters included.
    """
    chosen, known = trains(config.trainable, model), set(paths)
    return step_flops(
        model,
        rows=config.batch_size,
        sequence_length=config.data.tokens,
        images=config.batch_size * config.data.max_images,
        trainable=lambda path: path in known and chosen(path),
    )


def step_flops(
    config: IdeficsConfig, *, rows: int, sequence_length: int, images: int, trainable: Callable[[str], bool]
) -> float:
    """FLOPs of one training step over all devices; see `idefics_jax.cost.flops`."""
    return sum(flops_by_part(config, rows=rows, sequence_length=sequence_length, images=images, trainable=trainable))


#: Dense bfloat16 peaks in FLOP/s of one JAX device, by a part of its kind; the first that fits counts.
PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,  # v5p, by either of its names
    "TPU v6": 918e12,
    "TPU7x": 2307e12 / 2,  # a chip is two devices
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 peak in FLOP/s of the device that JAX calls so (`jax.devices()[0].device_kind`); None: unknown."""
    return next((peak for name, peak in PEAKS.items() if name in device_kind), None)
