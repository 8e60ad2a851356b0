"""CIDEr-D, BLEU-4, ROUGE-L and the words they are of: hand-checked, and against pycocoevalcap."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from idefics_jax.evaluation.metrics import bootstrap, caption_scores
from idefics_jax.evaluation.metrics.ptb import tokenized
from tests.evaluation import record_ptb

RECORDED = json.loads(record_ptb.FILE.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A man's dog isn't here.", "a man 's dog is n't here"),
        ("Two dogs, a cat; and (maybe) a bird!", "two dogs a cat and -lrb- maybe -rrb- a bird"),
        ('"Hello," he said...', "hello he said"),
        ("a t-shirt, 10:30 a.m., $5.99", "a t-shirt 10:30 a.m. $ 5.99"),
        ("Mr. Smith of the U.S. can't", "mr. smith of the u.s. ca n't"),
        ("Wow!! \U0001f600", "wow !!"),
        ("  spaces\tand\nlines ", "spaces and lines"),
        (".", ""),
        ("", ""),
    ],
)
def test_words(caption, words):
    assert tokenized(caption) == words


def test_words_are_the_public_implementations():
    assert len(RECORDED) > 500
    assert [[caption, tokenized(caption)] for caption, _ in RECORDED] == RECORDED


@pytest.mark.skipif(shutil.which("java") is None, reason="the public tokeniser needs Java")
def test_the_recording_is_current(capfd):
    captions = record_ptb.WRITTEN + record_ptb.generated(500)
    assert [list(pair) for pair in zip(captions, record_ptb.tokens(captions), strict=True)] == RECORDED


def public(candidates, references):
    """CIDEr-D and ROUGE-L of each item, and BLEU-4, of the public implementation."""
    truth = {index: [tokenized(text) for text in several] for index, several in enumerate(references)}
    found = {index: [tokenized(text)] for index, text in enumerate(candidates)}
    bleu, _ = Bleu().compute_score(truth, found, verbose=0)
    return Cider().compute_score(truth, found)[1], Rouge().compute_score(truth, found)[1], bleu[3]


def corpus(seed, items=60):
    """Captions of a few words, so that n-grams repeat, with one to six references."""
    generator = np.random.default_rng(seed)
    words = ["a", "the", "dog", "cat", "man's", "red,", "car", "on", "in", "street.", "runs", "with", '"sign"', "don't"]

    def sentence():
        return " ".join(generator.choice(words, size=generator.integers(1, 14)))

    references = [[sentence() for _ in range(generator.integers(1, 7))] for _ in range(items)]
    changed = [list(several[0].split(" ")) for several in references]
    for index, several in enumerate(changed):
        several[generator.integers(len(several))] = generator.choice(words)
        changed[index] = several + several[: generator.integers(3)]
    return [" ".join(several) for several in changed], references


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_the_public_implementations(seed):
    candidates, references = corpus(seed)
    candidates[3], candidates[4] = "", "."  # a model may say nothing
    references[5] = ["", "a dog"]
    cider, rouge, bleu = public(candidates, references)
    scores = caption_scores(candidates, references)
    np.testing.assert_allclose(scores.cider, cider, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(scores.rouge, rouge, rtol=1e-12)
    assert scores.bleu() == pytest.approx(bleu, rel=1e-12)
    assert scores.cider.std() > 0.1


def test_bleu_of_a_resample_is_the_public_implementations():
    candidates, references = corpus(7)
    scores = caption_scores(candidates, references)
    index = np.random.default_rng(0).integers(60, size=60)
    drawn = [candidates[i] for i in index], [references[i] for i in index]
    assert scores.bleu(index) == pytest.approx(public(*drawn)[2], rel=1e-12)
    low, high = bootstrap(scores.bleu, 60)
    assert low < scores.bleu() < high


def test_recorded_captions_scored():
    """Real looking captions, each against its neighbours in the list and itself in capitals."""
    captions = [caption for caption, _ in RECORDED[-200:]]
    references = [[captions[i - 1], captions[i - 2], captions[i].upper()] for i in range(200)]
    cider, rouge, bleu = public(captions, references)
    scores = caption_scores(captions, references)
    np.testing.assert_allclose(scores.cider, cider, rtol=1e-10)
    np.testing.assert_allclose(scores.rouge, rouge, rtol=1e-12)
    assert scores.bleu() == pytest.approx(bleu, rel=1e-12)
    assert 0.9 < scores.bleu() < 1  # in capitals, some abbreviations are words


def test_a_perfect_caption_by_hand():
    """Two images, no n-gram in both: every weight is log 2, so each order's cosine is 1."""
    scores = caption_scores(["a dog runs fast", "two red cars here"], [["A dog runs fast."], ["Two red cars here"]])
    assert scores.cider.tolist() == pytest.approx([10.0, 10.0])
    assert scores.rouge.tolist() == [1.0, 1.0]
    assert scores.bleu() == pytest.approx(1.0)
    assert scores.bleu_statistics[0].tolist() == [4, 4, 4, 3, 2, 1, 4, 3, 2, 1]


def test_partial_captions_by_hand():
    scores = caption_scores(["a dog", "x y z w"], [["a dog runs fast"], ["p q r s"]])
    # One of one, one of one, none, none; cosines sqrt(2/4), sqrt(1/3), 0, 0; two pairs of words fewer.
    expected = 10 / 4 * (math.sqrt(2 / 4) + math.sqrt(1 / 3)) * math.exp(-(2**2) / (2 * 6**2))
    assert scores.cider.tolist() == pytest.approx([expected, 0.0])
    # Precision 1, recall 1/2, beta 1.2.
    assert scores.rouge.tolist() == pytest.approx([(1 + 1.44) * 0.5 / (0.5 + 1.44), 0.0])
    assert scores.bleu_statistics[0].tolist() == [2, 4, 2, 1, 0, 0, 2, 1, 0, 0]
    assert scores.bleu() < 1e-3


def test_one_image_has_no_cider():
    """With one image no n-gram tells it from others: all weights are 0, as in the public implementation."""
    assert caption_scores(["a dog"], [["a dog"]]).cider.tolist() == [0.0]


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        ([], [], "no captions"),
        (["a"], [["a"], ["b"]], "1 captions and 2 lists"),
        (["a", "b c"], [["a"], []], "Caption 1 .'b c'. has no references"),
    ],
)
def test_errors(candidates, references, message):
    with pytest.raises(ValueError, match=message):
        caption_scores(candidates, references)


def test_the_recording_is_small():
    assert sum(path.stat().st_size for path in Path(__file__).parent.glob("*.json")) < 250_000
