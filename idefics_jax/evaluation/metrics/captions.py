"""Captions: CIDEr-D, BLEU-4 and ROUGE-L, as `pycocoevalcap` computes them."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from idefics_jax.evaluation.metrics.ptb import tokenized

ORDERS = 4  # n-grams of one to four words
SIGMA = 6.0  # of CIDEr-D's penalty for another length
BETA = 1.2  # how much more recall counts in ROUGE-L than precision

Counts = Counter[tuple[str, ...]]


class CaptionScores(NamedTuple):
    """The scores of the captions of some images.

    Attributes:
        cider: CIDEr-D of each image, 0 to 10; the mean is the corpus's, whose n-gram weights are in it. The evaluation
            server's figures, and papers', are the mean times 100 and may so pass 100.
        rouge: ROUGE-L of each image, 0 to 1; the mean is the corpus's.
        bleu_statistics: what the corpus's BLEU-4 is computed from: of each image, the words in the caption and in the
            reference nearest in length, then for n from 1 to 4 the n-grams in the caption, then those that a reference
            has too.
    """

    cider: Float[np.ndarray, " items"]
    rouge: Float[np.ndarray, " items"]
    bleu_statistics: Int[np.ndarray, "items 10"]

    def bleu(self, index: Int[np.ndarray, " drawn"] | None = None) -> float:
        """BLEU-4, 0 to 1, of the images at these indices, or of all."""
        rows = self.bleu_statistics if index is None else self.bleu_statistics[index]
        length, reference_length, *counts = rows.sum(axis=0).tolist()
        # The tiny numbers are the public implementation's, which keeps a corpus without a common 4-gram just above 0.
        precision = math.prod(
            (correct + 1e-15) / (total + 1e-9) for total, correct in zip(counts[:ORDERS], counts[ORDERS:], strict=True)
        )
        ratio = (length + 1e-15) / (reference_length + 1e-9)
        return precision ** (1 / ORDERS) * (math.exp(1 - 1 / ratio) if ratio < 1 else 1.0)


def caption_scores(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """Scores one caption for each image against the image's reference captions.

    Args:
        candidates: the captions, plain text; they are cut into words here.
        references: of each image, one caption or more.

    Raises:
        ValueError: there are no captions, not as many captions as lists of references, or an image without references.
    """
    if not candidates:
        raise ValueError("There are no captions to score.")
    if len(candidates) != len(references):
        raise ValueError(f"There are {len(candidates)} captions and {len(references)} lists of references.")
    for index, several in enumerate(references):
        if not several:
            raise ValueError(f"Caption {index} ({candidates[index]!r}) has no references; leave it out.")
    captions = [tokenized(candidate) for candidate in candidates]
    expected = [[tokenized(reference) for reference in several] for several in references]
    counts = [_counts(caption) for caption in captions]
    expected_counts = [[_counts(reference) for reference in several] for several in expected]
    return CaptionScores(
        cider=_cider(counts, expected_counts),
        rouge=np.array([_rouge(*pair) for pair in zip(captions, expected, strict=True)]),
        bleu_statistics=np.array([_bleu_row(*pair) for pair in zip(counts, expected_counts, strict=True)]),
    )


def _counts(caption: str) -> Counts:
    words = caption.split()
    return Counter(
        tuple(words[start : start + order]) for order in range(1, ORDERS + 1) for start in range(len(words) - order + 1)
    )


def _of_order(counts: Counts, order: int) -> int:
    return sum(count for gram, count in counts.items() if len(gram) == order)


def _cider(captions: list[Counts], references: list[list[Counts]]) -> Float[np.ndarray, " items"]:
    """n-grams that few images' references have weigh more: by the logarithm of images over images that have it."""
    images = Counter(gram for several in references for gram in set().union(*several))
    everything = math.log(len(captions))

    def weighted(counts: Counts) -> tuple[dict[tuple[str, ...], float], list[float], int]:
        """The weight of each n-gram, the norm of those of each order, and the length, in pairs of words."""
        weights = {gram: count * (everything - math.log(images[gram] or 1)) for gram, count in counts.items()}
        squares = [0.0] * ORDERS
        for gram, weight in weights.items():
            squares[len(gram) - 1] += weight * weight
        return weights, [math.sqrt(square) for square in squares], _of_order(counts, 2)

    def similarity(caption: Counts, several: list[Counts]) -> float:
        weights, norms, length = weighted(caption)
        total = 0.0
        for reference in several:
            reference_weights, reference_norms, reference_length = weighted(reference)
            products = [0.0] * ORDERS
            for gram, weight in weights.items():
                if gram in reference_weights:  # a repeated n-gram counts no more often than the reference has it
                    other = reference_weights[gram]
                    products[len(gram) - 1] += min(weight, other) * other
            cosines = (
                product / (norm * other) if norm and other else product
                for product, norm, other in zip(products, norms, reference_norms, strict=True)
            )
            total += sum(cosines) * math.exp(-((length - reference_length) ** 2) / (2 * SIGMA**2))
        return 10 * total / ORDERS / len(several)

    return np.array([similarity(*pair) for pair in zip(captions, references, strict=True)])


def _bleu_row(caption: Counts, references: list[Counts]) -> list[int]:
    length = _of_order(caption, 1)
    lengths = [_of_order(reference, 1) for reference in references]
    nearest = min(lengths, key=lambda other: (abs(other - length), other))
    most: Counts = Counter()
    for reference in references:
        most |= reference
    correct = caption & most
    totals = [max(0, length - order + 1) for order in range(1, ORDERS + 1)]
    return [length, nearest, *totals, *(_of_order(correct, order) for order in range(1, ORDERS + 1))]


def _rouge(caption: str, references: list[str]) -> float:
    """The best precision and the best recall of the longest common subsequence, of whichever references, in one F."""
    words = caption.split(" ")  # an empty caption is one empty word, as in the public implementation
    precision = recall = 0.0
    for reference in references:
        others = reference.split(" ")
        common = _longest_common(words, others)
        precision, recall = max(precision, common / len(words)), max(recall, common / len(others))
    if not precision:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _longest_common(one: list[str], other: list[str]) -> int:
    """The length of the longest common subsequence."""
    best = [0] * (len(other) + 1)  # of what was seen of `one` with each beginning of `other`
    for word in one:
        before = best
        best = [0]
        for place, candidate in enumerate(other):
            best.append(before[place] + 1 if word == candidate else max(before[place + 1], best[place]))
    return best[-1]
