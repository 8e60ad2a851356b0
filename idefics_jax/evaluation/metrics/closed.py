"""Answers chosen from candidates."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from idefics_jax.evaluation.metrics.bootstrap import UndefinedError


def accuracy(predicted: Sequence[object], truth: Sequence[object]) -> Float[np.ndarray, " items"]:
    """1 for each item whose prediction equals the truth, else 0.

    Raises:
        ValueError: there are not as many of one as of the other.
    """
    if len(predicted) != len(truth):
        raise ValueError(
            f"There are {len(predicted)} predictions and {len(truth)} truths; each item needs one of each."
        )
    return np.array([float(one == other) for one, other in zip(predicted, truth, strict=True)])


def roc_auc(
    scores: Sequence[float] | Float[np.ndarray, " items"], truth: Sequence[object] | Bool[np.ndarray, " items"]
) -> float:
    """The area under the ROC curve: how likely a positive item is to have a higher score than a negative one.

    Equal scores count as half. The scores are real numbers, such as the log-likelihood of "yes" less that of "no". (The
    code that IDEFICS was evaluated with gives 0 and 1 instead, the better answer's; that makes it the mean of the two
    classes' accuracies, and lower.)

    Args:
        scores: of each item; only their order matters.
        truth: whether each item is positive.

    Raises:
        UndefinedError: the items are all positive or all negative.
        ValueError: a score is not a number, or there are not as many scores as truths.
    """
    values, positive = np.asarray(scores, np.float64), np.asarray(truth, bool)
    if values.shape != positive.shape:
        raise ValueError(f"There are {values.size} scores and {positive.size} truths; each item needs one of each.")
    if np.isnan(values).any():
        raise ValueError("A score is not a number (NaN); the items cannot be ordered by it.")
    if positive.all() or not positive.any():
        raise UndefinedError("The ROC AUC needs positive and negative items, and these are all of one class.")
    negatives = np.sort(values[~positive])
    below = np.searchsorted(negatives, values[positive], "left")
    not_above = np.searchsorted(negatives, values[positive], "right")
    return float(np.mean(below + not_above) / (2 * negatives.size))
