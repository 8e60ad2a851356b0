"""The page about an evaluation."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from idefics_jax.evaluation import report_cards
from idefics_jax.evaluation.records import Record
from idefics_jax.evaluation.report import write_report
from idefics_jax.evaluation.report_chart import chart
from tests.support.page import Page

EVIL = "<script>alert('x')</script>\" onload=\"alert(1)"


class Report(Page):
    """The page about an evaluation."""

    def cards(self):
        """Each card's scores and marks by place."""
        found = self.find("article")
        return [(json.loads(card["data-scores"]), json.loads(card["data-marks"])) for card in found]


def record(id, score, answer="a dog", images=(), question="What is this?", references=("cat", "cat", "kitten"), **rest):
    fields = {"candidates": None, "log_likelihoods": None, "shots": ()} | rest
    return Record(id, tuple(map(str, images)), question, answer, references, score, **fields)


def summary(records, task="vqa", main="VQA accuracy", **changes):
    results = []
    for shots, several in records.items():
        scores = [one.score for one in several if one.score is not None]
        value = 100 * sum(scores) / len(scores) if scores else None
        score = {main: {"value": value, "low": value - 5, "high": value + 4.5}} if scores else {}
        results.append({"shots": shots, "count": len(several), "bad": 0, "truncated": 0, "scores": score})
    return {
        "task": task,
        "model": "tiny",
        "command": f"idefics-jax eval {task}",
        "settings": {"num_beams": 3},
        "main": main if any(result["scores"] for result in results) else None,
        "results": results,
        "problems": {"count": 0, "share": 0.0, "first": []},
    } | changes


def page(folder, records, **changes):
    write_report(folder / "report.html", summary(records, **changes), records)
    html = (folder / "report.html").read_text(encoding="utf-8")
    return Report(html), html


def test_a_whole_report(tmp_path, photos):
    images = [photos / "0.png"], [photos / "1.png", photos / "2.png"]
    records = {
        0: [record(7, 0.3, "a kitty", images[0]), record(9, 0.9, "cats", images[1])],
        4: [record(7, 1.0, "cat", images[0], shots=(3, 5)), record(9, 0.0, "car", images[1])],
    }
    problems = {"count": 2, "share": 0.5, "first": ["Question 8: gone.jpg does not exist."]}
    shown, html = page(tmp_path, records, problems=problems)

    assert "tiny on vqa" in shown.text
    assert "idefics-jax eval vqa" in shown.text
    assert "60.0 (55.0 to 64.5)" in shown.text
    (figure,) = shown.find("svg")
    assert figure["aria-label"] == "VQA accuracy by shots: 60.0 at 0, 50.0 at 4"
    assert "Left out: 2 (50.0%); the first of them" in shown.text
    assert "Question 8: gone.jpg" in shown.text
    assert "num_beams" in shown.text

    # The one that was answered worst after the most shots is first.
    assert shown.cards() == [([0.9, 0.0], ["right", "wrong"]), ([0.3, 1.0], ["partly", "right"])]
    for text in "a kitty ± partly right 30 %", "cat ✓ right", "cats ✓ right 90 %", "car ✗ wrong", "cat 2 times":
        assert text in shown.text
    assert [one["title"] for one in shown.find("small") if one.get("title")] == ["examples: 3, 5"]
    assert [image["alt"] for image in shown.find("img")] == ["1.png", "2.png", "0.png"]
    assert [one.get("selected", "no") for one in shown.find("option")] == ["no", None]

    assert not re.search(r'(src|href)="(?!data:)|@import|url\(|https?://', html)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_images_are_made_smaller(tmp_path):
    Image.fromarray(np.zeros((900, 1200, 3), np.uint8)).save(tmp_path / "large.png")
    shown, _ = page(tmp_path, {0: [record(1, 1.0, images=[tmp_path / "large.png"])]})
    kind, _, content = shown.find("img")[0]["src"].partition(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        assert image.size == (320, 240)


def test_text_from_data_is_text(tmp_path):
    images = [f"{EVIL}.png"]
    evil = record(EVIL, 0.0, EVIL, images, EVIL, (EVIL,), shots=(EVIL,))
    closed = record(2, 1.0, EVIL, (), EVIL, (EVIL,), candidates=(EVIL, "no"), log_likelihoods=(-1.0, -2.0))
    records = {0: [evil, closed], 1: [evil, closed]}
    problems = {"count": 1, "share": 1.0, "first": [EVIL]}
    changes = {"model": EVIL, "command": EVIL, "settings": {EVIL: EVIL}, "problems": problems, "main": EVIL}
    shown, _ = page(tmp_path, records, **changes)
    assert len(shown.find("script")) == 1
    assert not any("onload" in attributes for _, attributes in shown.tags)
    assert shown.text.count(EVIL) >= 14


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    images = [tmp_path / "broken.jpg", tmp_path / "gone.jpg"]
    shown, _ = page(tmp_path, {0: [record(1, 1.0, images=images)]})
    assert not shown.find("img")
    assert "broken.jpg is not an image" in shown.text
    assert "gone.jpg does not exist" in shown.text


def test_candidates_and_their_probabilities(tmp_path):
    names = tuple("abcdefgh")
    likelihoods = tuple(float(-place) for place in range(8))
    one = record("x", 0.0, "a", references=("h",), candidates=names, log_likelihoods=likelihoods, question="")
    shown, _ = page(tmp_path, {0: [one]}, task="classification", main="accuracy")
    total = sum(np.exp(likelihoods))
    for name in "abcdeh":
        assert f"{np.exp(-names.index(name)) / total:.1%} {name}" in shown.text
    assert "and 2 more" in shown.text
    assert [item for item in shown.find("li") if "true" in item.get("class", "")] == [{"class": "text true"}]
    assert len(shown.find("meter")) == 6


def test_captions_are_low_and_high(tmp_path):
    records = {0: [record(id, id / 20, "a cat", question="") for id in range(9)]}
    shown, _ = page(tmp_path, records, task="captions", main="CIDEr-D")
    assert "lowest quarter" in shown.text
    assert "CIDEr-D 400" in shown.text
    assert [marks[0] for _, marks in shown.cards()] == ["wrong"] * 3 + [""] * 3 + ["right"] * 3


def test_remarks_are_under_the_scores(tmp_path):
    shown, _ = page(tmp_path, {0: [record(1, 1.0)]}, notes=["CIDEr-D of one image is 0 <b>"])
    assert "CIDEr-D of one image is 0 <b>" in shown.text


def test_answers_without_references(tmp_path):
    shown, _ = page(tmp_path, {0: [record(1, None, "", references=())]})
    assert "There are no references, and so no scores." in shown.text
    assert "(nothing)" in shown.text
    assert shown.cards() == [([None], [""])]
    assert not shown.find("svg")


def test_nothing_answered(tmp_path):
    shown, _ = page(tmp_path, {0: [], 4: []})
    assert "No question was answered." in shown.text
    assert not shown.find("form")


def test_a_question_that_some_shots_lack(tmp_path):
    records = {0: [record(1, 1.0), record(2, 1.0)], 4: [record(2, 0.5)]}
    shown, _ = page(tmp_path, records)
    assert shown.cards() == [([1.0, 0.5], ["right", "partly"]), ([1.0, None], ["right", ""])]


def test_mistakes_are_half_of_many(tmp_path):
    records = {0: [record(id, float(id % 5 > 0)) for id in range(2000)]}
    shown, _ = page(tmp_path, records)
    marks = [marks[0] for _, marks in shown.cards()]
    assert marks == ["wrong"] * 150 + ["right"] * 150
    assert "300 of 2,000, drawn at random: 150 of the 400 that are not right and 150 of the 1,600 others." in shown.text
    few = {0: [record(id, float(id > 20)) for id in range(2000)]}
    shown, _ = page(tmp_path, few)
    assert [marks[0] for _, marks in shown.cards()] == ["wrong"] * 21 + ["right"] * 279


def test_images_stop_where_the_page_is_full(tmp_path, photos, monkeypatch):
    monkeypatch.setattr(report_cards, "IMAGE_BYTES", 2 << 10)
    records = {0: [record(id, 1.0, images=[photos / f"{id}.png"]) for id in range(12)]}
    shown, html = page(tmp_path, records)
    assert 0 < len(shown.find("img")) < 12
    assert len("".join(re.findall(r'src="(data:[^"]*)"', html))) < 4 << 10
    assert f"{12 - len(shown.find('img'))} images were left out" in shown.text


def test_a_page_that_cannot_be_written(tmp_path):
    with pytest.raises(OSError, match=r"report\.html"):
        write_report(tmp_path / "gone" / "report.html", summary({0: []}), {0: []})


def test_the_chart_is_to_scale():
    score = {"low": 10.0, "value": 20.0, "high": 30.0}
    drawing = chart("accuracy", [(8, score), (0, score | {"value": 10.0, "low": 5.0})])
    shown = Page(drawing)
    first, second = [(float(one["cx"]), float(one["cy"])) for one in shown.find("circle")]
    assert first[0] < second[0]
    rules = [float(re.search(r" ([\d.]+)H", one["d"])[1]) for one in shown.find("path") if one.get("class") == "rule"]
    labels = [float(label) for label in re.findall(r">(\d+)</text>", drawing)[: len(rules)]]
    per_point = (rules[0] - rules[-1]) / (labels[-1] - labels[0])
    assert first[1] - second[1] == pytest.approx(10 * per_point, abs=0.2)
    assert labels[0] <= 5
    assert labels[-1] >= 30


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (99.9, 100.0), (0.0, 1234.5), (50.0, 50.0)])
def test_the_chart_of_any_range(low, high):
    score = {"low": low, "value": (low + high) / 2, "high": high}
    heights = [float(one["cy"]) for one in Page(chart("x", [(0, score), (1, score)])).find("circle")]
    assert all(0 <= height <= 200 for height in heights)


def test_one_number_of_shots_has_no_chart():
    assert chart("x", [(0, {"low": 1.0, "value": 1.0, "high": 1.0})]) == ""
