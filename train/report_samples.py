"""The part of a run's report that shows what the model answers."""

import math
from html import escape
from typing import Any

EARLIER = 10  # evaluations before the last whose answers are shown


def samples(predictions: list[dict[str, Any]]) -> str:
    """The answers of the last evaluation beside their images, with those of earlier ones folded away; "" if none.

    The arguments are the lines of predictions.jsonl.
    """
    if not predictions:
        return ""
    groups: dict[int, list[dict[str, Any]]] = {}
    for one in predictions:
        groups.setdefault(one["step"], []).append(one)
    last = max(groups)
    earlier = sorted(step for step in groups if step != last)
    earlier = earlier[:: max(1, math.ceil(len(earlier) / EARLIER))]
    marks = [one["right"] for one in groups[last] if isinstance(one.get("right"), bool)]
    right = f": {sum(marks)} of {len(marks)} right" if marks else ""
    cards = []
    for index, one in enumerate(groups[last]):
        before = [(step, groups[step][index]) for step in earlier if index < len(groups[step])]
        before = [(step, other) for step, other in before if other.get("prompt") == one.get("prompt")]
        cards.append(_sample(one, before))
    return f"<h2>Sample answers at step {last:,}{right}</h2><div class=samples>{''.join(cards)}</div>"


def _sample(one: dict[str, Any], before: list[tuple[int, dict[str, Any]]]) -> str:
    urls = [str(url) for url in one.get("images") or ()]
    pictures = "".join(f'<img src="{escape(url)}" alt="image of the prompt" loading="lazy">' for url in urls)
    rows = [("Answer", f"{_text(one, 'answer')} {_mark(one)}"), ("Reference", _text(one, "reference"))]
    listed = "".join(f"<dt>{name}</dt><dd class=text>{value}</dd>" for name, value in rows)
    history = "".join(
        f"<tr><th>{step:,}</th><td>{_text(other, 'answer')} {_mark(other)}</td></tr>" for step, other in before
    )
    if history:
        history = f"<details><summary>Answers at earlier steps</summary><table>{history}</table></details>"
    prompt = f"<p class='text prompt'>{_text(one, 'prompt')}</p>"
    return f"<article><div class=pictures>{pictures}</div>{prompt}<dl>{listed}</dl>{history}</article>"


def _text(one: dict[str, Any], name: str) -> str:
    return escape(str(one.get(name, ""))) or "<span class=quiet>(nothing)</span>"


def _mark(one: dict[str, Any]) -> str:
    if not isinstance(one.get("right"), bool):
        return ""
    return "<span class='mark right'>✓ right</span>" if one["right"] else "<span class='mark wrong'>✗ differs</span>"
