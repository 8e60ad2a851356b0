"""An evaluation on one page, `report.html`, that needs nothing from elsewhere."""

import html
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from idefics_jax.evaluation.records import Record
from idefics_jax.evaluation.report_cards import cards
from idefics_jax.evaluation.report_chart import chart
from idefics_jax.utils.paths import write_whole

#: The browser itself sees to it that nothing is fetched, whatever a record says.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def write_report(path: Path, summary: dict[str, Any], records: dict[int, Sequence[Record]]) -> None:
    """Writes the page: the scores with their intervals, and questions with their images, answers and references.

    The page is there whole or not at all. It shows 300 questions at most and 12 MiB of images, made smaller, and says
    what it left out (`report_cards`). An image that cannot be read is named in its place.

    Args:
        path: the file to write.
        summary: as `summary.json` (see `records`).
        records: the questions by the number of examples in their prompts; questions of the same id are one.

    Raises:
        OSError: the page cannot be written.
    """
    title = f"{summary['model']} on {summary['task']}"
    body = "".join(
        (
            f"<header><h1>{html.escape(title)}</h1><pre class=command>{html.escape(summary['command'])}</pre></header>",
            f"<div class=top>{_scores(summary)}{chart(summary['main'], _points(summary))}</div>",
            _problems(summary["problems"]),
            cards(summary, records),
            _settings(summary["settings"]),
        )
    )
    here = files("idefics_jax.evaluation")
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{html.escape(title)}</title><style>{here.joinpath('report.css').read_text('utf-8')}</style></head>"
        f"<body>{body}<script>{here.joinpath('report.js').read_text('utf-8')}</script></body></html>\n"
    )
    write_whole(path, page)


def _scores(summary: dict[str, Any]) -> str:
    """The table: a row for each number of shots."""
    results = summary["results"]
    names = list(dict.fromkeys(name for result in results for name in result["scores"]))
    counts = [name for name in ("count", "bad", "truncated") if name == "count" or any(one[name] for one in results)]
    titles = {"count": "answers", "bad": "left out", "truncated": "cut prompts"}
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ["shots", *names, *(titles[name] for name in counts)])
    rows = []
    for result in results:
        cells = [_score(result["scores"].get(name)) for name in names]
        cells += [f"<td>{result[name]:,}</td>" for name in counts]
        rows.append(f"<tr><th>{result['shots']:,}</th>{''.join(cells)}</tr>")
    note = "" if names else "<p class=quiet>There are no references, and so no scores.</p>"
    note += "".join(f"<p class=quiet>{html.escape(text)}</p>" for text in summary.get("notes", ()))
    interval = "<p class=quiet>In brackets: where 95 of 100 bootstrap draws of the questions lie.</p>" if names else ""
    table = f"<table class=scores><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f"<section><div class=wide>{table}</div>{interval}{note}</section>"


def _score(score: dict[str, float] | None) -> str:
    if score is None:
        return "<td></td>"
    return f"<td><b>{score['value']:.1f}</b> <small>({score['low']:.1f} to {score['high']:.1f})</small></td>"


def _points(summary: dict[str, Any]) -> list[tuple[int, dict[str, float]]]:
    main = summary["main"]
    return [(result["shots"], result["scores"][main]) for result in summary["results"] if main in result["scores"]]


def _problems(problems: dict[str, Any]) -> str:
    if not problems["count"]:
        return ""
    lines = "".join(f"<li class=text>{html.escape(str(line))}</li>" for line in problems["first"])
    left_out = f"Left out: {problems['count']:,} ({problems['share']:.1%})"
    more = "; the first of them" if len(problems["first"]) < problems["count"] else ""
    return f"<details><summary>{left_out}{more}</summary><ul>{lines}</ul></details>"


def _settings(settings: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{html.escape(str(name))}</th><td class=text>{html.escape(str(value))}</td></tr>"
        for name, value in settings.items()
    )
    return f"<details><summary>Settings</summary><table>{rows}</table></details>" if rows else ""
