"""Each step's metrics, logged when the next step is under way."""

import time

import jax
import numpy as np

from idefics_jax import IdeficsConfig
from train.batches import Step
from train.config import TrainConfig
from train.flops import peak_flops, step_flops
from train.metrics import Metrics
from train.optimizer import schedule
from train.trainable import trains


class Late:
    """Logs each step's metrics when the next step is under way, so that nothing waits for the devices.

    Args:
        metrics: where they are logged.
        config: of the run.
        skipped: steps that were skipped before.
        peak_share: a step's part of all that the devices can do in a second; None where that is not known.
    """

    def __init__(self, metrics: Metrics, config: TrainConfig, skipped: int, peak_share: float | None):
        self.metrics, self.config, self.skipped, self.peak_share = metrics, config, skipped, peak_share
        self.rate = schedule(config.optimizer, config.steps)
        self.waiting: tuple[int, dict[str, jax.Array]] | None = None
        self.tokens = self.images = self.steps = 0
        self.since: float | None = None  # the first step is left out: it compiles

    def log(self, number: int, values: dict[str, jax.Array], step: Step) -> None:
        """Takes the metrics of step `number`, and logs those of the one before.

        Raises:
            RuntimeError: too many steps in a row were skipped.
        """
        self.flush()
        self.waiting = (number, values)
        for row in step.rows.values():
            self.tokens += int(np.count_nonzero(row.segment_ids))
            self.images += int(row.image_attention_mask.any(axis=0).sum())
        self.steps += 1

    def flush(self) -> None:
        """Logs the metrics that wait; raises as `log`."""
        if self.waiting is None:
            return
        number, values = self.waiting
        self.waiting = None
        found = {name: float(value) for name, value in jax.device_get(values).items()}
        if found["skipped_in_row"] >= self.config.max_skipped:
            raise RuntimeError(
                f"{self.config.max_skipped} steps in a row had a loss or gradients that were not finite, the last of "
                f"them step {number}; nothing of them was kept. A lower --optimizer.learning-rate or float32 (--dtype) "
                "may mend it; the same command goes on from the last checkpoint."
            )
        if number % self.config.log_every and number != self.config.steps:
            return
        skipped = int(found["skipped"])
        line = {name: found[name] for name in ("loss", "z_loss", "gradient_norm")}
        # The schedule stands still while steps are skipped.
        line["learning_rate"] = float(np.asarray(self.rate(number - 1 - (skipped - int(found["skipped_in_row"] > 0)))))
        line["skipped"] = skipped - self.skipped
        now = time.monotonic()
        if self.since is not None:
            seconds = now - self.since
            line |= {"tokens_per_second": self.tokens / seconds, "images_per_second": self.images / seconds}
            line["seconds"] = seconds / self.steps
            if self.peak_share is not None:
                line["mfu"] = self.peak_share * self.steps / seconds
        self.metrics.log(number, line)
        self.since, self.skipped = now, skipped
        self.tokens = self.images = self.steps = 0


def peak_share(config: TrainConfig, model: IdeficsConfig, paths: tuple[str, ...]) -> float | None:
    """A step's FLOPs as a part of what all devices can do in a second at best; None where that is not known.

    Args:
        paths: of the model's weights.
    """
    peak = peak_flops(jax.devices()[0].device_kind)
    if peak is None:
        return None
    chosen, known = trains(config.trainable, model), set(paths)
    flops = step_flops(
        model,
        rows=config.batch_size,
        sequence_length=config.data.sequence_length,
        images=config.batch_size * config.data.max_images,
        trainable=lambda path: path in known and chosen(path),
    )
    return flops / (peak * jax.device_count())
