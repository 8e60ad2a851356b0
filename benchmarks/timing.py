"""Two programs timed in turns, so that a machine that slows down slows both."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

REST = 0.3  # seconds: PyTorch's and XLA's threads go on spinning for a while after work


class Pair(NamedTuple):
    """Median seconds of each, and the median of the ratios `reference / ours` of neighbouring runs."""

    ours: float
    reference: float
    ratio: float
    spread: tuple[float, float]  # smallest and largest ratio

    @property
    def ratios(self) -> str:
        """As the tables show them."""
        return f"{self.ratio:.2f} ({self.spread[0]:.2f} to {self.spread[1]:.2f})"


def seconds(run: Callable[[], Any]) -> float:
    time.sleep(REST)
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def pair(ours: Callable[[], Any], reference: Callable[[], Any], rounds: int) -> Pair:
    """Runs each once uncounted (compiling, reading files), then `rounds` times in turns."""
    ours(), reference()
    times = [(seconds(ours), seconds(reference)) for _ in range(rounds)]
    return summary([one for one, _ in times], [other for _, other in times])


def summary(ours: list[float], reference: list[float]) -> Pair:
    ratios = [other / one for one, other in zip(ours, reference, strict=True)]
    return Pair(
        statistics.median(ours),
        statistics.median(reference),
        statistics.median(ratios),
        (min(ratios), max(ratios)),
    )
