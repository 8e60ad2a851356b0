"""From answers to scores with their intervals, and the files that benchmarks' servers take."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from idefics_jax.evaluation.examples import Data, Example, Id
from idefics_jax.evaluation.metrics import accuracy, bootstrap, caption_scores, exact_match, roc_auc, vqa_accuracy
from idefics_jax.evaluation.records import Record
from idefics_jax.evaluation.store import Answer

Scores = dict[str, dict[str, float]]
Statistic = Callable[[np.ndarray], float]


def score(
    task: str, examples: Sequence[Example], answers: Mapping[Id, Answer], positive: str | None, seed: int
) -> tuple[list[Record], Scores]:
    """The records of the answered examples, and each metric's percentage with its interval, the main one first.

    Args:
        positive: the candidate that counts as positive in ROC AUC; default: the second one.
        seed: of the bootstrap.
    """
    pairs = [(example, answers[example.id]) for example in examples if example.id in answers]
    pairs = [(example, answer) for example, answer in pairs if answer.answer is not None]
    scored = [(example, answer) for example, answer in pairs if example.references]
    values: dict[Id, float] = {}
    metrics: dict[str, Statistic] = {}
    if scored:
        if scored[0][0].candidates is not None:
            each, metrics = _closed(scored, positive)
        elif task == "captions":
            each, metrics = _captions(scored)
        else:
            each, metrics = _questions(scored, first="VQA accuracy" if task == "vqa" else "exact match")
        values = {example.id: float(value) for (example, _), value in zip(scored, each, strict=True)}
    everything = np.arange(len(scored))
    scores = {}
    for name, metric in metrics.items():
        low, high = bootstrap(metric, len(scored), seed)
        scores[name] = {"value": 100 * float(metric(everything)), "low": 100 * float(low), "high": 100 * float(high)}
    return [_record(example, answer, values.get(example.id)) for example, answer in pairs], scores


def _record(example: Example, answer: Answer, value: float | None) -> Record:
    closed = example.candidates is not None
    return Record(
        id=example.id,
        images=example.images,
        question=example.question,
        answer=answer.answer or "",
        references=(example.answer,) if closed and example.references else example.references,
        score=value,
        candidates=example.candidates,
        log_likelihoods=answer.log_likelihoods,
        shots=answer.shots,
    )


def _mean(values: np.ndarray) -> Statistic:
    return lambda index: float(values[index].mean())


def _questions(scored: list[tuple[Example, Answer]], first: str) -> tuple[np.ndarray, dict[str, Statistic]]:
    """VQA accuracy and exact match."""
    both = {
        name: np.array([metric(answer.answer or "", example.references) for example, answer in scored])
        for name, metric in (("VQA accuracy", vqa_accuracy), ("exact match", exact_match))
    }
    return both[first], {name: _mean(both[name]) for name in sorted(both, key=lambda name: name != first)}


def _captions(scored: list[tuple[Example, Answer]]) -> tuple[np.ndarray, dict[str, Statistic]]:
    """CIDEr-D, BLEU-4 and ROUGE-L; a caption is worth its CIDEr-D, of which 10 is the most."""
    found = caption_scores([answer.answer or "" for _, answer in scored], [example.references for example, _ in scored])
    metrics: dict[str, Statistic] = {
        "CIDEr-D": _mean(found.cider),
        "BLEU-4": found.bleu,
        "ROUGE-L": _mean(found.rouge),
    }
    return np.clip(found.cider / 10, 0, 1), metrics


def _closed(scored: list[tuple[Example, Answer]], positive: str | None) -> tuple[np.ndarray, dict[str, Statistic]]:
    """Accuracy; and ROC AUC of the difference of the two candidates' scores, where all have the same two."""
    truth = [example.answer for example, _ in scored]
    right = accuracy([answer.answer or "" for _, answer in scored], truth)
    metrics: dict[str, Statistic] = {"accuracy": _mean(right)}
    candidates = scored[0][0].candidates or ()
    if len(candidates) == 2 and all(example.candidates == candidates for example, _ in scored):
        yes = candidates.index(positive) if positive in candidates else 1
        likelihoods = np.array([answer.log_likelihoods for _, answer in scored], np.float64)
        margin = likelihoods[:, yes] - likelihoods[:, 1 - yes]
        is_yes = np.array([answer == candidates[yes] for answer in truth])
        if is_yes.any() and not is_yes.all():
            metrics["ROC AUC"] = lambda index: roc_auc(margin[index], is_yes[index])
    return right, metrics


def predictions(data: Data, answers: Mapping[Id, Answer]) -> list[dict[str, Any]]:
    """The list that the benchmark's server takes: every question, "" where it has no answer."""
    ids = [example.id for example in data.examples]
    ids += [problem.id for problem in data.problems if problem.kind == "missing image" and problem.id is not None]
    return [{data.id_name: id, data.answer_name: (answers[id].answer or "") if id in answers else ""} for id in ids]
