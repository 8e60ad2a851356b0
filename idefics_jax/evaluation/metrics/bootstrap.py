"""Confidence intervals by drawing the items again."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int


class UndefinedError(ValueError):
    """A statistic has no value for these items."""


def bootstrap(
    statistic: Callable[[Int[np.ndarray, " items"]], float],
    count: int,
    seed: int = 0,
    resamples: int = 1000,
    level: float = 0.95,
) -> tuple[float, float]:
    """The percentile bootstrap interval of a statistic.

    Args:
        statistic: of the items at some indices, each given as often as it was drawn. Draws for which it raises
            `UndefinedError` (the ROC AUC of items of one class) are passed over.
        count: how many items there are.
        seed: of the draws; the same seed gives the same interval.
        resamples: how often `count` items are drawn, with replacement.
        level: the share of the draws whose statistic lies within the interval.

    Raises:
        ValueError: there are no items.
        UndefinedError: the statistic has no value for any draw.
    """
    if count < 1:
        raise ValueError("There are no items to draw from.")
    generator = np.random.default_rng(seed)
    values, reason = [], None
    for _ in range(resamples):
        try:
            values.append(statistic(generator.integers(count, size=count)))
        except UndefinedError as error:
            reason = error
    if not values:
        raise UndefinedError("The statistic has no value for any draw of the items.") from reason
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
