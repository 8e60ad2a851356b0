"""Accuracy, ROC AUC and bootstrap intervals."""

import math

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, norm

from idefics_jax.evaluation.metrics import UndefinedError, accuracy, bootstrap, roc_auc


def test_accuracy_is_per_item():
    assert accuracy(["a", "b", "c"], ["a", "c", "c"]).tolist() == [1.0, 0.0, 1.0]
    with pytest.raises(ValueError, match="1 predictions and 2 truths"):
        accuracy(["a"], ["a", "b"])


@pytest.mark.parametrize(
    ("scores", "truth", "expected"),
    [
        ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], 0.75),
        ([3.0, 2.0, 1.0], [True, False, False], 1.0),
        ([1.0, 2.0, 3.0], [True, False, False], 0.0),
        ([1.0, 1.0, 1.0], [True, False, False], 0.5),
        ([1.0, 2.0, 2.0, 3.0], [False, False, True, True], 0.875),
        ([-math.inf, math.inf], [False, True], 1.0),
    ],
)
def test_roc_auc(scores, truth, expected):
    assert roc_auc(scores, truth) == pytest.approx(expected)


def test_roc_auc_is_the_rank_statistic():
    generator = np.random.default_rng(0)
    for classes in 2, 5, 1000:  # many ties, some, none
        scores, truth = generator.integers(classes, size=200) / 7, generator.random(200) < 0.3
        u = mannwhitneyu(scores[truth], scores[~truth]).statistic
        assert roc_auc(scores, truth) == pytest.approx(u / (truth.sum() * (~truth).sum()))


def test_roc_auc_of_labels_is_the_mean_of_the_classes_accuracies():
    """What IDEFICS's evaluation gives to its AUC, which is less than the scores know."""
    scores, truth = np.array([0.9, 0.4, 0.45, 0.2]), np.array([True, True, False, False])
    assert roc_auc((scores > 0.5).astype(float), truth) == pytest.approx((1 / 2 + 2 / 2) / 2)
    assert roc_auc(scores, truth) == pytest.approx(3 / 4)


def test_roc_auc_errors():
    with pytest.raises(UndefinedError, match="all of one class"):
        roc_auc([1.0, 2.0], [True, True])
    with pytest.raises(ValueError, match="2 scores and 3 truths"):
        roc_auc([1.0, 2.0], [True, True, False])
    with pytest.raises(ValueError, match="NaN"):
        roc_auc([math.nan, 2.0], [True, False])


def test_the_interval_of_a_mean():
    """Near the normal approximation of many items."""
    values = np.random.default_rng(1).normal(size=2000)
    low, high = bootstrap(lambda index: values[index].mean(), 2000)
    half = norm.ppf(0.975) * values.std() / math.sqrt(2000)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
    narrow = bootstrap(lambda index: values[index].mean(), 2000, level=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_the_interval_depends_on_the_seed_alone():
    values = np.arange(10.0)
    intervals = [bootstrap(lambda index: values[index].mean(), 10, seed) for seed in (0, 0, 1)]
    assert intervals[0] == intervals[1] != intervals[2]
    assert bootstrap(lambda index: 3.0, 1) == (3.0, 3.0)


def test_draws_without_a_value_are_passed_over():
    scores, truth = np.array([1.0, 3.0, 2.0]), np.array([False, True, True])  # about a third lack a class
    assert bootstrap(lambda index: roc_auc(scores[index], truth[index]), 3) == (1.0, 1.0)


def test_bootstrap_errors():
    with pytest.raises(ValueError, match="no items"):
        bootstrap(lambda index: 0.0, 0)
    with pytest.raises(UndefinedError, match="no value for any draw"):
        bootstrap(lambda index: roc_auc([1.0], [True]), 1)
