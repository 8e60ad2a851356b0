"""What `idefics-jax eval` makes of its answers: scores, files for servers and people, a table."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from idefics_jax.cli.loading import note
from idefics_jax.evaluation.examples import Data, Problem
from idefics_jax.evaluation.protocol import EvalConfig
from idefics_jax.evaluation.report import write_report
from idefics_jax.evaluation.results import predictions, score
from idefics_jax.evaluation.store import Answer, Store, write_json
from idefics_jax.pocket import POCKET

PROBLEMS_SHOWN = 10
ONE_CAPTION = "CIDEr-D of one image is 0 whatever its caption: words count by how few of the images have them."


def is_too_many(options: argparse.Namespace, problems: list[Problem], count: int) -> bool:
    """Return True if more of `count` examples are bad than `--max-bad` allows; it always allows one, unless it is 0."""
    allowed = max(options.max_bad * count, 1 if options.max_bad and count > 1 else 0)
    return len(problems) > allowed


def too_many(options: argparse.Namespace, problems: list[Problem], count: int, name: str) -> str:
    """A sentence on bad data, of `count` examples of the option of this name."""
    return (
        f"{len(problems):,} of the {count:,} examples of {name} are bad, the first because: {problems[0].text} "
        f"{Path(options.out) / 'problems.jsonl'} lists them; --max-bad allows more than {options.max_bad:g} of all."
    )


def finish(
    options: argparse.Namespace,
    protocol: EvalConfig,
    data: Data,
    answers: dict[int, dict[Any, Answer]],
    store: Store,
    of_support: list[Problem],
) -> int:
    """Writes what the answers come to and prints the table.

    Args:
        of_support: what is wrong with the support set.

    Returns:
        1 if more of the data is bad than `--max-bad` allows, else 0.
    """
    results, records, main = [], {}, None
    worst, count = data.problems, len(data.examples) + len(data.problems)
    for shots in options.shots:
        found = answers[shots]
        bad = [
            Problem(answer.problem[0], answer.id, answer.problem[1])
            for answer in found.values()
            if answer.problem is not None
        ]
        records[shots], scores = score(options.task, data.examples, found, options.positive, options.seed)
        main = main or next(iter(scores), None)
        results.append(
            {
                "shots": shots,
                "count": len(records[shots]),
                "bad": len(bad) + len(data.problems),
                "truncated": sum(answer.truncated for answer in found.values()),
                "scores": scores,
            }
        )
        write_json(store.folder / f"predictions-{shots}.json", predictions(data, found))
        worst = max(worst, [*data.problems, *bad], key=len)
    store.write_problems([*worst, *of_support])
    shown = [problem.text for problem in [*worst, *of_support][:PROBLEMS_SHOWN]]
    notes = [ONE_CAPTION] if options.task == "captions" and any(part["count"] == 1 for part in results) else []
    summary = {
        "task": options.task,
        "model": "the pocket model" if options.model == POCKET else options.model,
        "command": shlex.join(["idefics-jax", *options.arguments]),
        "settings": _shown_settings(protocol),
        "main": main,
        "results": results,
        "notes": notes,
        "problems": {"count": len(worst) + len(of_support), "share": len(worst) / max(count, 1), "first": shown},
    }
    write_json(store.folder / "summary.json", summary)
    write_report(store.folder / "report.html", summary, records)
    _print_table(summary)
    for text in notes:
        note(text)
    if worst or of_support:
        note(f"{len(worst) + len(of_support):,} bad examples; {store.folder / 'problems.jsonl'} lists them.")
    if is_too_many(options, worst, count):
        note(f"idefics-jax: {too_many(options, worst, count, '--data')}")
        return 1
    return 0


def _shown_settings(protocol: EvalConfig) -> dict[str, Any]:
    settings = {name: value for name, value in protocol._asdict().items() if name not in ("names", "template")}
    return settings | protocol.template._asdict()


def _print_table(summary: dict[str, Any]) -> None:
    """The scores, one line for each number of shots, on standard output."""
    names = list(dict.fromkeys(name for result in summary["results"] for name in result["scores"]))
    table = Table("shots", "answers", *names)
    for result in summary["results"]:
        scores = [result["scores"].get(name) for name in names]
        cells = ["" if x is None else f"{x['value']:.1f} ({x['low']:.1f} to {x['high']:.1f})" for x in scores]
        table.add_row(str(result["shots"]), f"{result['count']:,}", *cells)
    Console(file=sys.stdout).print(table)
