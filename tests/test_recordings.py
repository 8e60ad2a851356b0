"""The recorded reference outputs are what PyTorch gives today, and a stale file is noticed."""

import re
import sys
import types

import numpy as np
import pytest

from tests.reference import generation as reference_generation
from tests.reference import record


@pytest.fixture
def subject(tmp_path, monkeypatch):
    """A subject that records two arrays, saved in a folder of its own."""
    module = types.ModuleType("tests.reference.made_up")
    arrays = {"tokens": np.arange(6).reshape(2, 3), "logits": np.linspace(-2, 2, 8, dtype=np.float32)}
    module.record = lambda: arrays
    monkeypatch.setitem(sys.modules, "tests.reference.made_up", module)
    monkeypatch.setattr(record, "subjects", lambda: ["made_up"])
    monkeypatch.setattr(record, "FOLDER", tmp_path)
    record.write("made_up")
    return arrays


def test_a_recording_reads_back_and_is_current(subject, capsys):
    loaded = record.load("made_up")
    assert loaded.keys() == subject.keys()
    assert all(np.array_equal(loaded[name], subject[name]) for name in subject)
    assert record.main(["--check"]) == 0
    assert capsys.readouterr().out == "made_up: current\n"


def test_rounding_is_not_staleness(subject):
    subject["logits"] = subject["logits"] * np.float32(1 + 1e-6)
    assert record.differences("made_up") == []


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("tokens", np.array([[0, 1, 2], [3, 4, 6]]), "tokens: 1 of 6 values differ"),
        ("tokens", np.zeros([2, 2], np.int64), r"tokens: was int64\[2, 3\], is int64\[2, 2\]"),
        ("logits", np.full(8, np.nan, np.float32), "logits: NaN or infinite values differ"),
        ("logits", np.linspace(-2, 2.1, 8, dtype=np.float32), "logits: differs by up to 0.1 where"),
        ("loss", np.float32(1), "loss is not in the file"),
    ],
)
def test_a_stale_recording_is_named(subject, capsys, name, value, line):
    subject[name] = value
    assert record.main(["--check", "made_up"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("made_up is stale, run python -m tests.reference.record made_up:")
    assert re.search(line, out)


def test_a_recording_too_large_for_git_is_refused(subject):
    subject["noise"] = np.random.default_rng(0).random(100_000)
    with pytest.raises(ValueError, match=r"made_up\.npz would be 7\d\d,\d{3} bytes of at most 131,072"):
        record.write("made_up")


@pytest.mark.torch
@pytest.mark.parametrize(
    "subject_name",
    [pytest.param(name, marks=pytest.mark.slow if name == "generation" else ()) for name in record.subjects()],
)
def test_recording_is_current(subject_name):
    pytest.importorskip("torch")
    assert record.differences(subject_name) == []


@pytest.mark.torch
def test_the_first_batches_of_the_recording_of_generation_are_current(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(reference_generation, "BATCHES", dict.fromkeys(reference_generation.RULES, 1))
    recorded = record.load("generation")
    for name, array in reference_generation.record().items():
        np.testing.assert_allclose(recorded[name], array, rtol=record.RTOL, err_msg=name)
