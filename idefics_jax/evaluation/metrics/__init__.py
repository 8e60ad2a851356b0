"""Scores of answers and captions, and how sure they are. Each as the benchmarks' own evaluation computes it."""

from idefics_jax.evaluation.metrics.bootstrap import UndefinedError, bootstrap
from idefics_jax.evaluation.metrics.captions import CaptionScores, caption_scores
from idefics_jax.evaluation.metrics.closed import accuracy, roc_auc
from idefics_jax.evaluation.metrics.vqa import exact_match, vqa_accuracy

__all__ = [
    "CaptionScores",
    "UndefinedError",
    "accuracy",
    "bootstrap",
    "caption_scores",
    "exact_match",
    "roc_auc",
    "vqa_accuracy",
]
