"""VQA accuracy and exact match: hand-checked, and as open-flamingo's copy of the benchmark's evaluation says."""

import json
from pathlib import Path

import pytest

from idefics_jax.evaluation.metrics import exact_match, vqa_accuracy
from idefics_jax.evaluation.metrics.vqa import normalised

RECORDED = json.loads(Path(__file__).with_name("vqa.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes.", "yes"),
        ("The  cat\n", "cat"),
        ("two dogs", "2 dogs"),
        ("none", "0"),
        ("dont", "don't"),
        ("couldntve", "couldntve"),  # only one apostrophe may be missing
        ("couldn'tve", "couldn't've"),
        ("somebody'd", "somebodyd"),
        ("t-shirt", "t shirt"),
        ("red, white", "red white"),
        ("red,white", "red white"),
        ("t-shirt, 1,000", "tshirt 1000"),
        ("3.5.", "3.5"),
        ("U.S.A.", "usa"),
        (".5", ".5"),
        ("a", ""),
    ],
)
def test_normalisation(answer, expected):
    assert normalised(answer) == expected


@pytest.mark.parametrize("matches", range(11))
def test_accuracy_of_ten_references(matches):
    expected = [0, 0.3, 0.6, 0.9, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0][matches]
    assert vqa_accuracy("Cat.", ["the cat"] * matches + ["dog"] * (10 - matches)) == pytest.approx(expected)


def test_accuracy_of_few_references():
    assert vqa_accuracy("cat", ["A cat."]) == 1.0
    assert vqa_accuracy("cat", ["dog"]) == 0.0
    assert vqa_accuracy("cat", ["cat", "cat"]) == pytest.approx(1 / 3)


def test_exact_match():
    assert exact_match("2 dogs", ["cat", "Two dogs."]) == 1.0
    assert exact_match("two", ["three"]) == 0.0


def test_no_references_is_an_error():
    for metric in vqa_accuracy, exact_match:
        with pytest.raises(ValueError, match="without references"):
            metric("cat", [])


def test_as_the_public_implementation_says():
    assert len(RECORDED) == 401
    assert [normalised(one["answer"]) for one in RECORDED] == [one["normalised"] for one in RECORDED]
    accuracies = [vqa_accuracy(one["answer"], one["references"]) for one in RECORDED]
    assert accuracies == pytest.approx([one["accuracy"] for one in RECORDED])
    assert len({round(accuracy, 6) for accuracy in accuracies}) > 10
