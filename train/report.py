"""A run on one page: `report.html`, made of the files in its directory, that needs nothing from elsewhere.

`python -m train.report RUN` makes it again.
"""

import argparse
import json
import math
import statistics
import sys
from html import escape
from pathlib import Path
from typing import Any

from idefics_jax.utils.paths import write_whole

from . import jsonl
from .charts import Curve, Points, chart, number, smoothed
from .config import TrainConfig
from .history import STARTS
from .metrics import COUNTS, METRICS, PREDICTIONS
from .place import RunDirectory
from .report_samples import samples

REPORT = "report.html"
SKIPPED = "skipped*.log"  # of each process
#: What the report is made of.
FILES = (METRICS, PREDICTIONS, "run.json", "summary.json", SKIPPED)
LOG_LINES = 200  # of skipped.log
MANY = 60  # steps, from which on a curve is smoothed

Lines = list[dict[str, Any]]


def write_report(directory: str | Path) -> Path:
    """Makes `report.html` of what there is in the directory of a run, finished or not, and returns its path.

    It reads metrics.jsonl, predictions.jsonl, run.json (the settings), summary.json (more numbers, if any) and
    skipped*.log (a line for each record that could not be used, if any). The page is there whole or not at all.

    Raises:
        OSError: the page cannot be written.
    """
    directory = Path(directory)
    here = Path(__file__)
    metrics, predictions = (list(jsonl.read(directory / name)) for name in (METRICS, PREDICTIONS))
    settings, summary = (_load(directory / name) for name in ("run.json", "summary.json"))
    starts = settings.pop(STARTS, [])
    training = _by_step(line for line in metrics if "loss" in line)
    held_out = _by_step(line for line in metrics if any(name.startswith("eval_") for name in line))
    name = directory.resolve().name
    body = "".join(
        [
            f"<header><h1>{escape(name)}</h1><p class=quiet>{escape(_subtitle(settings))}</p></header>",
            _tiles(training, held_out, settings),
            _charts(training, held_out) or "<p>Nothing was logged yet.</p>",
            samples(predictions),
            _skipped(training, sorted(directory.glob(SKIPPED))),
            _table("Totals", _flat(summary)) if summary else "",
            _starts(starts),
            _settings(settings),
        ]
    )
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # The browser itself sees to it that nothing is fetched, whatever a record says.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
        f"<title>{escape(name)}</title><style>{here.with_suffix('.css').read_text()}</style></head>"
        f"<body>{body}<script>{here.with_suffix('.js').read_text()}</script></body></html>\n"
    )
    write_whole(directory / REPORT, page)
    return directory / REPORT


def _load(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _by_step(lines: Any) -> Lines:
    """Ascending, one line a step: the later one in the file."""
    return [line for _, line in sorted({line["step"]: line for line in lines}.items())]


def _points(lines: Lines, name: str) -> Points:
    return [(line["step"], _finite(line[name])) for line in lines if name in line]


def _finite(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def _subtitle(settings: dict[str, Any]) -> str:
    model = settings.get("model") or (f"random {settings['random']}" if settings.get("random") else None)
    parts = [model, settings.get("recipe"), settings.get("trainable") and f"trains {settings['trainable']}"]
    return " · ".join(str(part) for part in parts if part)


def _tiles(training: Lines, held_out: Lines, settings: dict[str, Any]) -> str:
    tiles = []

    def tile(name: str, value: str, note: str = "") -> None:
        tiles.append(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(note)}</small></dd></div>")

    if training:
        steps = settings.get("steps")
        tile("Steps", f"{training[-1]['step']:,}", f"of {steps:,}" if isinstance(steps, int) else "")
        ((_, loss),) = smoothed(_points(training, "loss"))[-1:]
        tile("Training loss", "not finite" if math.isnan(loss) else number(loss), "mean of the last steps")
    for name in _names(held_out):
        points = [(step, value) for step, value in _points(held_out, name) if not math.isnan(value)]
        if points:
            low = "loss" in name or "perplexity" in name
            step, best = (min if low else max)(points, key=lambda point: point[1])
            counts = [held_out[-1].get(count) for count in COUNTS] if name == "eval_exact_match" else []
            shown = "{} of {} right; ".format(*counts) if all(isinstance(one, int) for one in counts) and counts else ""
            tile(_title(name), number(points[-1][1]), f"{shown}best {number(best)}, at step {step:,}")
    for name, title in ("tokens_per_second", "Tokens/s"), ("images_per_second", "Images/s"), ("mfu", "MFU"):
        values = [value for _, value in _points(training, name) if not math.isnan(value)]
        if values:
            middle = statistics.median(values)
            tile(title, f"{middle:.1%}" if name == "mfu" else number(middle), "median")
    return f"<dl class=tiles>{''.join(tiles)}</dl>" if tiles else ""


def _names(held_out: Lines) -> list[str]:
    """What was measured on held-out data, the loss first."""
    names = {name for line in held_out for name in line if name.startswith("eval_")} - set(COUNTS)
    return sorted(names, key=lambda name: (name != "eval_loss", name))


def _title(name: str) -> str:
    return f"Held-out {name.removeprefix('eval_').replace('_', ' ')}"


def _charts(training: Lines, held_out: Lines) -> str:
    def curves(name: str) -> list[Curve]:
        points = _points(training, name)
        if len(points) < MANY:
            return [Curve("training", points)]
        return [Curve("each step", points, "faint"), Curve("smoothed", smoothed(points))]

    loss = curves("loss") if training else []
    if held_out_loss := _points(held_out, "eval_loss"):
        loss.append(Curve("held-out", held_out_loss, "dots"))
    skipped = [line["step"] for line in training if _finite(line.get("skipped")) > 0]
    figures = [chart("Loss", loss, skipped=skipped)]
    for name in _names(held_out):
        if name != "eval_loss":
            figures.append(chart(_title(name), [Curve("held-out", _points(held_out, name), "dots")], from_zero=True))
    figures.append(chart("Learning rate", [Curve("rate", _points(training, "learning_rate"))], from_zero=True))
    for name, title in ("gradient_norm", "Gradient norm"), ("tokens_per_second", "Tokens per second"):
        figures.append(chart(title, curves(name), from_zero=True))
    drawn = "".join(figures)
    return f"<h2>Curves</h2><div class=charts>{drawn}</div>" if drawn else ""


def _skipped(training: Lines, logs: list[Path]) -> str:
    steps = [f"{line['step']:,}" for line in training if _finite(line.get("skipped")) > 0]
    parts = []
    if steps:
        shown = ", ".join(steps[:LOG_LINES]) + (" and later ones" if len(steps) > LOG_LINES else "")
        parts.append(f"<p>Steps that changed nothing, because a gradient was not finite: {shown}.</p>")
    if logs:
        lines = [line for log in logs for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
        title = f"Records that could not be used: {len(lines):,}"
        title += f" (the last {LOG_LINES} are shown)" if len(lines) > LOG_LINES else ""
        text = escape("\n".join(lines[-LOG_LINES:]))
        parts.append(f"<details><summary>{title}</summary><pre>{text}</pre></details>")
    return f"<h2>Skipped</h2>{''.join(parts)}" if parts else ""


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {f"{prefix}{name}": value}
    return flat


def _settings(settings: dict[str, Any]) -> str:
    if not settings:
        return ""
    default = _flat(json.loads(json.dumps(TrainConfig(out="").to_dict())))
    flat = _flat(settings)
    usual = {name for name, value in flat.items() if name in default and default[name] == value}
    chosen = _table("Settings", {name: value for name, value in flat.items() if name not in usual})
    rest = _rows({name: value for name, value in flat.items() if name in usual})
    return f"{chosen}<details><summary>{len(usual)} more, as they are by default</summary>{rest}</details>"


def _starts(starts: Any) -> str:
    """Each start of a run that was continued, with the settings that differ from the start before."""
    if not isinstance(starts, list) or len(starts) < 2:
        return ""
    rows: dict[str, Any] = {}
    before: dict[str, Any] = {}
    for place, start in enumerate(starts, 1):
        flat = _flat(start.get("settings", {}))
        changed = {name: value for name, value in flat.items() if name in before and before[name] != value}
        rows[f"{place}. from step {start.get('step')}, {start.get('time')}"] = changed or "the same settings"
        before = flat
    return _table("Starts", rows)


def _table(title: str, values: dict[str, Any]) -> str:
    return f"<h2>{title}</h2>{_rows(values)}"


def _rows(values: dict[str, Any]) -> str:
    def shown(value: Any) -> str:
        if isinstance(value, float):
            return number(value)
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    rows = (f"<tr><th>{escape(name)}</th><td>{escape(shown(value))}</td></tr>" for name, value in values.items())
    return f"<table>{''.join(rows)}</table>"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m train.report", description="Makes report.html of a run's files.")
    parser.add_argument("run", help="directory of the run, or its URL")
    try:
        place = RunDirectory(parser.parse_args().run)
        if not place.path.is_dir():
            sys.exit(f"{place.path} is no directory.")
        place.fetch(*FILES)
        place.start()
        write_report(place.local)
        place.close()
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    print(place.path / REPORT)


if __name__ == "__main__":
    main()
