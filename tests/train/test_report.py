"""The page about a run, made from its files alone."""

import json
import math
import re
import sys

import numpy as np
import pytest

from tests.support.page import Page
from train import jsonl
from train.charts import Curve, chart, smoothed, thinned, ticks
from train.config import DataConfig, TrainConfig
from train.metrics import Metrics, Prediction
from train.report import main, write_report

NAN = math.nan
EVIL = "<script>alert('x')</script>\" onload=\"alert(1)"


class RunPage(Page):
    """The page about a run."""

    def charts(self):
        return {
            attributes["aria-label"].split(",")[0]: json.loads(figure["data-chart"])
            for attributes, figure in zip(self.find("svg"), self.find("figure"), strict=True)
        }


def page(directory):
    html = write_report(directory).read_text()
    return RunPage(html), html


def steps(count, **changes):
    return [
        {
            "step": step,
            "loss": 2 + 1 / step,
            "learning_rate": 1e-5,
            "gradient_norm": 0.5,
            "tokens_per_second": 1000.0,
            "mfu": 0.4,
            "skipped": 0,
        }
        | changes
        for step in range(1, count + 1)
    ]


def prediction(answer, reference="a cat", prompt="What is this?"):
    return Prediction(prompt, answer, reference, [np.zeros((8, 8, 3), np.uint8)])


def test_a_whole_run(tmp_path):
    lines = steps(200)
    lines[99] |= {"loss": NAN, "gradient_norm": NAN, "skipped": 1}
    jsonl.append(tmp_path / "metrics.jsonl", lines)
    with Metrics(tmp_path, 200, 200, visible=False) as run:
        for step, answer in (100, "a dog"), (200, "A cat."):
            run.evaluation(step, {"eval_loss": 300 / step, "eval_exact_match": step / 400})
            run.predictions(step, [prediction(answer), prediction("two", "three")])
    config = TrainConfig(out=str(tmp_path), steps=200, data=DataConfig(train=("images.tar=0.3",)))
    (tmp_path / "run.json").write_text(json.dumps(config.to_dict()))
    (tmp_path / "summary.json").write_text(json.dumps({"padding": {"share": 0.0312}}))
    (tmp_path / "skipped.log").write_text("a.jpg: cannot identify image file\n")
    shown, html = page(tmp_path)

    charts = shown.charts()
    assert list(charts) == [
        "Loss",
        "Held-out exact match",
        "Learning rate",
        "Gradient norm",
        "Tokens per second",
    ]
    raw, smooth, held_out = charts["Loss"]["curves"]
    assert raw["points"][99] == [100, None]
    assert smooth["points"][99][1] == pytest.approx(2.01, abs=1e-3)
    assert held_out["points"] == [[100, 3.0], [200, 1.5]]
    assert "best 1.5, at step 200" in shown.text
    assert "skipped step" in shown.text

    assert "Sample answers at step 200: 1 of 2 right" in shown.text
    assert "✓ right" in shown.text
    assert "✗ differs" in shown.text
    assert "a dog" in shown.text  # what it answered before
    assert [image["src"][:23] for image in shown.find("img")] == ["data:image/jpeg;base64,"] * 2

    assert "data.train" in shown.text
    assert "images.tar=0.3" in shown.text
    assert "padding.share" in shown.text
    assert "changed nothing, because a gradient was not finite: 100." in shown.text
    assert "Records that could not be used: 1" in shown.text
    assert "a.jpg: cannot identify" in shown.text

    assert not re.search(r'(src|href)="(?!data:)|@import|url\(|https?://', html)
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith(".")} == set()


def test_text_from_data_is_text(tmp_path):
    with Metrics(tmp_path, 1, 0, visible=False) as run:
        run.log(1, steps(1)[0])
        run.evaluation(1, {f"eval_{EVIL}": 1.0})
        run.predictions(1, [prediction(EVIL, EVIL, EVIL)])
    (tmp_path / "run.json").write_text(json.dumps({"model": EVIL, EVIL: EVIL}))
    (tmp_path / "skipped.log").write_text(EVIL)
    shown, _ = page(tmp_path)
    assert len(shown.find("script")) == 1
    assert not any("onload" in attributes for _, attributes in shown.tags)
    assert shown.text.count(EVIL) >= 6


@pytest.mark.parametrize(
    "lines",
    [
        [],
        steps(1),
        steps(1, loss=None, gradient_norm=None),
        steps(100, loss=None),
        steps(3)[:1] + steps(3),  # a step twice
        [{"step": 4, "eval_loss": 2.0}],
        [{"step": 4, "loss": "?", "skipped": None, "images_per_second": 1e30}],
        steps(80, gradient_norm=0.0, learning_rate=0.0),
    ],
)
def test_whatever_there_is(tmp_path, lines):
    jsonl.append(tmp_path / "metrics.jsonl", lines)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('null\n{"loss": 1}\n{"step": 9, "lo')
    shown, html = page(tmp_path)
    assert "nan" not in re.sub(r"<style>.*</style>|<script>.*</script>", "", html, flags=re.DOTALL).lower()
    assert ("Nothing was logged yet" in shown.text) == (not shown.charts())


def test_an_empty_directory(tmp_path):
    shown, _ = page(tmp_path)
    assert "Nothing was logged yet" in shown.text


def test_a_long_run_is_a_small_page(tmp_path):
    rng = np.random.default_rng(0)
    lines = [line | {"loss": float(rng.normal()) + 3, "gradient_norm": float(rng.random())} for line in steps(20_000)]
    lines[12_345]["loss"] = 50.0
    jsonl.append(tmp_path / "metrics.jsonl", [line | {"step": 5 * line["step"]} for line in lines])
    shown, html = page(tmp_path)
    assert len(html) < 300_000
    raw, smooth = shown.charts()["Loss"]["curves"]
    assert max(value for _, value in raw["points"]) == 50.0
    assert all(2.5 < value < 3.5 for _, value in smooth["points"])
    assert raw["points"][-1][0] > 99_000
    assert smooth["points"][-1][0] == 100_000


def test_thinning_keeps_spikes_and_gaps():
    points = [(step, float(step % 7)) for step in range(10_000)]
    points[5_000] = (5_000, 99.0)
    points[2_000:3_000] = [(step, NAN) for step in range(2_000, 3_000)]
    thin = thinned(points)
    assert len(thin) <= 800
    assert thin == sorted(thin)
    assert (5_000, 99.0) in thin
    assert any(math.isnan(value) for _, value in thin)
    assert thinned(points[:800]) == points[:800]


def test_smoothing_is_a_mean_around_each_step():
    assert smoothed([(1, 1.0), (2, NAN), (3, 5.0)]) == [(1, 1.0), (2, 3.0), (3, 5.0)]
    assert math.isnan(smoothed([(1, NAN)])[0][1])
    assert smoothed([]) == []


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (1.9, 4.2, [2, 2.5, 3, 3.5, 4]), (1, 1500, [500, 1000, 1500]), (3, 3, [3])],
)
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_a_curve_of_one_value_has_a_place():
    assert 'class="main alone" d="M500 ' in chart("One", [Curve("loss", [(7, 2.0)])])
    assert chart("None", [Curve("loss", [(7, NAN)])]) == ""


def test_the_command_makes_it_again(tmp_path, monkeypatch, capsys):
    jsonl.append(tmp_path / "metrics.jsonl", steps(2))
    monkeypatch.setattr(sys, "argv", ["train.report", str(tmp_path)])
    main()
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"
    assert (tmp_path / "report.html").is_file()
    monkeypatch.setattr(sys, "argv", ["train.report", str(tmp_path / "none")])
    with pytest.raises(SystemExit, match=f"{tmp_path / 'none'} is no directory."):
        main()
