"""Each step's metrics, logged when the next step is under way."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np

from idefics_jax import IdeficsConfig

from .batches import Step
from .config import TrainConfig
from .flops import peak_flops, run_flops
from .metrics import Metrics
from .optimizer import schedule

AT_THE_END = 5  # steps in a row, before the last one, that must not all be skipped


class LaggedMetrics:
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
        self.skipping = False  # the last step that was looked at was skipped
        self.waiting: tuple[int, dict[str, jax.Array]] | None = None
        self.counts = np.zeros(4)  # tokens, images, steps, and seconds of making batches since `since`
        self.timed = np.zeros(4)  # those of them that were over at `until`
        self.since: float | None = None  # the first step is left out: it compiles
        self.until: float | None = None

    def log(self, number: int, values: dict[str, jax.Array], step: Step) -> None:
        """Takes the metrics of step `number`, and logs those of the one before.

        Raises:
            RuntimeError: too many steps in a row were skipped.
        """
        self.flush()
        self.waiting = (number, values)
        rows = step.rows.values()
        tokens = sum(np.count_nonzero(row.segment_ids) for row in rows)
        images = sum(row.image_attention_mask.any(axis=0).sum() for row in rows)
        self.counts += [tokens, images, 1, 0]

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Around the making of the next batch, while the devices work on this one: they wait for it only if it takes
        longer than a step."""
        start = time.monotonic()
        yield
        self.counts[3] += time.monotonic() - start

    @contextmanager
    def away(self) -> Iterator[None]:
        """Around work that is no step: logs what waits, and leaves the time out of the speeds. Raises as `log`."""
        # The last step is left to the next line's speed: on CPUs, where the call that starts a step returns when it is
        # over, it has ended already, and would seem to have taken no time.
        self.flush(timed=False)
        start = time.monotonic()
        yield
        if self.since is not None:
            self.since += time.monotonic() - start

    def flush(self, timed: bool = True) -> None:
        """Logs the metrics that wait; raises as `log`."""
        if self.waiting is None:
            return
        number, values = self.waiting
        self.waiting = None
        found = {name: float(value) for name, value in jax.device_get(values).items()}
        # A run that ends while it diverges has failed too.
        last = number == self.config.steps
        allowed = min(self.config.max_skipped, AT_THE_END, number) if last else self.config.max_skipped
        self.skipping = found["skipped_in_row"] > 0
        useless = last and self.skipping and not math.isfinite(found["loss"])  # whatever the finite weights are
        if useless or found["skipped_in_row"] >= allowed:
            raise RuntimeError(
                f"{int(found['skipped_in_row'])} steps in a row had a loss, gradients or updates that were not finite, "
                f"the last of them step {number}; nothing of them was kept, saved or exported. A lower "
                "--optimizer.learning-rate or float32 (--dtype) may mend it; the same command goes on from "
                "the last checkpoint."
            )
        if timed:
            self.until, self.timed = time.monotonic(), self.counts.copy()
        if number % self.config.log_every and number != self.config.steps:
            return
        skipped = int(found["skipped"])
        line = {name: found[name] for name in ("loss", "z_loss", "gradient_norm")}
        # The schedule stands still while steps are skipped.
        line["learning_rate"] = float(np.asarray(self.rate(number - 1 - (skipped - int(found["skipped_in_row"] > 0)))))
        line["skipped"] = skipped - self.skipped
        tokens, images, steps, loading = self.timed.tolist()
        if self.since is not None and self.until is not None and steps:
            seconds = self.until - self.since
            line |= {"tokens_per_second": tokens / seconds, "images_per_second": images / seconds}
            line |= {"seconds": seconds / steps, "data_seconds": loading / steps}
            if self.peak_share is not None:
                line["mfu"] = self.peak_share * steps / seconds
        self.metrics.log(number, line)
        self.skipped = skipped
        if steps:
            self.counts, self.timed, self.since = self.counts - self.timed, np.zeros(4), self.until


def peak_share(config: TrainConfig, model: IdeficsConfig, paths: tuple[str, ...]) -> float | None:
    """A step's FLOPs as a part of what all devices can do in a second at best; None where that is not known.

    Args:
        paths: of the model's weights.
    """
    peak = peak_flops(jax.devices()[0].device_kind)
    if peak is None:
        return None
    return run_flops(config, model, paths) / (peak * jax.device_count())
