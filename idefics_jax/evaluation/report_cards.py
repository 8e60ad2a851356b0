"""The questions of a report, each with its images, what was answered after how many examples, and what is right."""

import base64
import html
import io
import json
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from idefics_jax.evaluation.records import Record
from idefics_jax.processing.images import image_source, load_image

CARDS = 300  # questions shown
IMAGE_BYTES = 12 * 2**20  # of all images in the page, as text
THUMBNAIL = 320  # pixels of the longer side
CANDIDATES = 5  # shown, apart from the true one
RIGHT = 0.5  # a score above is right, below partly; 0 is wrong

Id = int | str


def cards(summary: dict[str, Any], records: dict[int, Sequence[Record]]) -> str:
    """The filters and the questions, those that were answered worst after the most examples first.

    Of more than 300 questions, half are of those not right and half of the others, as far as there are, at random.
    Captions have no right or wrong: theirs are the lowest and the highest quarter.
    """
    shots = sorted(records)
    if not any(records.values()):
        return "<p>No question was answered.</p>"
    captions = summary["task"] == "captions"
    marks = {count: _marks(records[count], captions) for count in shots}
    answered = {count: {record.id: record for record in records[count]} for count in shots}
    last = shots[-1]
    everything = list(dict.fromkeys(record.id for count in reversed(shots) for record in records[count]))
    chosen, told = _chosen(everything, marks[last], captions)
    if not captions:
        told += f" Right is a score above {RIGHT:.0%}."
    chosen.sort(key=lambda id: _rank(answered[last].get(id)))
    pictures = _Pictures()
    listed = []
    for id in chosen:
        rows = {count: answered[count][id] for count in shots if id in answered[count]}
        listed.append(_card(rows, {count: marks[count][id] for count in rows}, shots, captions, pictures))
    if pictures.left_out:
        told += f" {pictures.left_out:,} images were left out: the page holds {IMAGE_BYTES >> 20} MiB of them at most."
    return (
        f"<h2>{'Captions' if captions else 'Questions'}</h2><p class=quiet>{told}</p>{_filters(shots, captions)}"
        f"<main>{''.join(listed)}</main><p id=none hidden>Nothing matches.</p>"
    )


def _rank(record: Record | None) -> tuple[bool, float]:
    """The worst first, those without a score last."""
    return (record is None or record.score is None, 0.0 if record is None else record.score or 0.0)


def _marks(records: Sequence[Record], captions: bool) -> dict[Id, str]:
    """By id: "right", "partly" or "wrong", or "" where that is not known; of captions by quarters."""
    if not captions:
        return {record.id: _mark(record.score) for record in records}
    scores = [record.score for record in records if record.score is not None]
    low, high = np.quantile(scores, [0.25, 0.75]) if scores else (0.0, 1.0)

    def mark(score: float | None) -> str:
        if score is None or low < score < high:
            return ""
        return "wrong" if score <= low else "right"

    return {record.id: mark(record.score) for record in records}


def _mark(score: float | None) -> str:
    if score is None:
        return ""
    return "right" if score > RIGHT else "partly" if score > 0 else "wrong"


def _chosen(ids: list[Id], marks: dict[Id, str], captions: bool) -> tuple[list[Id], str]:
    """The questions to show, in a random order, and a sentence that says which they are."""
    shuffled = random.Random(0).sample(ids, len(ids))
    if len(ids) <= CARDS:
        return shuffled, f"All {len(ids):,}."
    bad = [id for id in shuffled if marks.get(id) in ("wrong", "partly")]
    other = [id for id in shuffled if marks.get(id) not in ("wrong", "partly")]
    number = max(min(len(bad), CARDS // 2), CARDS - len(other))
    kind = "in the lowest quarter" if captions else "not right"
    return bad[:number] + other[: CARDS - number], (
        f"{CARDS} of {len(ids):,}, drawn at random: {number:,} of the {len(bad):,} that are {kind} "
        f"and {CARDS - number:,} of the {len(other):,} others."
    )


def _counted(shots: int) -> str:
    return "1 shot" if shots == 1 else f"{shots:,} shots"


def _filters(shots: list[int], captions: bool) -> str:
    options = "".join(
        f"<option value={place}{' selected' if count == shots[-1] else ''}>after {_counted(count)}</option>"
        for place, count in enumerate(shots)
    )
    names = {"": "all", "wrong": "lowest quarter", "right": "highest quarter"}
    if not captions:
        names = {"": "all", "wrong": "only mistakes", "right": "only right"}
    buttons = "".join(
        f"<label><input type=radio name=marks value='{value}'{'' if value else ' checked'}>{name}</label>"
        for value, name in names.items()
    )
    return (
        f"<form class=filters><select name=shots aria-label='Answers'>{options}</select>"
        f"<fieldset aria-label='Which questions'>{buttons}</fieldset>"
        "<input type=search name=words placeholder='Search the text' aria-label='Search the text'>"
        "<output></output></form>"
    )


def _card(
    rows: dict[int, Record], marks: dict[int, str], shots: list[int], captions: bool, pictures: "_Pictures"
) -> str:
    record = next(iter(rows.values()))
    scores = json.dumps([rows[count].score if count in rows else None for count in shots])
    known = json.dumps([marks.get(count, "") for count in shots])
    answers = "".join(
        _answer(count, rows[count], marks[count], captions, place) for place, count in enumerate(shots) if count in rows
    )
    question = f"<p class='text question'>{html.escape(record.question)}</p>" if record.question else ""
    return (
        f"<article data-scores='{scores}' data-marks='{known}'>"
        f"<div class=pictures>{''.join(map(pictures.shown, record.images))}</div>{question}"
        f"<ul class=answers>{answers}</ul>{_references(record.references)}"
        f"<p class='quiet text'>id {html.escape(str(record.id))}</p></article>"
    )


def _answer(shots: int, record: Record, mark: str, captions: bool, place: int) -> str:
    answer = html.escape(record.answer) or "<span class=quiet>(nothing)</span>"
    examples = html.escape(f"examples: {', '.join(map(str, record.shots))}") if record.shots else ""
    return (
        f"<li class='{mark}' data-place={place}><small class=shots title='{examples}'>{_counted(shots)}</small> "
        f"<span class='text answer'>{answer}</span> "
        f"<b class=mark>{_told(record.score, mark, captions)}</b>{_candidates(record)}</li>"
    )


def _told(score: float | None, mark: str, captions: bool) -> str:
    """The score in words."""
    if score is None:
        return ""
    if captions:
        return f"CIDEr-D {1000 * score:.0f}"
    share = "" if score in (0, 1) else f" {100 * score:.0f} %"
    return {"right": "✓ right", "partly": "± partly right", "wrong": "✗ wrong"}[mark] + share


def _references(references: tuple[str, ...]) -> str:
    if not references:
        return ""
    title = "reference" if len(references) == 1 else "references"
    counted = Counter(references).most_common()
    listed = "".join(
        f"<li class=text>{html.escape(reference)}{f' <small>{count} times</small>' if count > 1 else ''}</li>"
        for reference, count in counted
    )
    return f"<ul class=references><li><small>{title}</small></li>{listed}</ul>"


def _candidates(record: Record) -> str:
    """The likeliest closed answers, and the true one, with their share of the probability of all."""
    if record.candidates is None or record.log_likelihoods is None:
        return ""
    likelihoods = np.asarray(record.log_likelihoods, np.float64)
    shares = np.exp(likelihoods - likelihoods.max())
    shares /= shares.sum()
    order = [int(place) for place in np.argsort(-shares, kind="stable")]
    shown = [place for rank, place in enumerate(order) if rank < CANDIDATES or _true(record, place)]
    rows = "".join(
        f"<li class='text{' true' if _true(record, place) else ''}'><meter value='{shares[place]:.4f}'></meter>"
        f"{shares[place]:.1%} {html.escape(record.candidates[place])}</li>"
        for place in shown
    )
    more = f"<li class=quiet>and {len(order) - len(shown):,} more</li>" if len(shown) < len(order) else ""
    return f"<ul class=candidates>{rows}{more}</ul>"


def _true(record: Record, place: int) -> bool:
    return record.candidates is not None and record.candidates[place] in record.references


class _Pictures:
    """Small JPEGs inside the page, as long as there is room."""

    def __init__(self) -> None:
        self.room, self.left_out = IMAGE_BYTES, 0

    def shown(self, source: str) -> str:
        """The image's element, or a note in its place."""
        name = html.escape("an image" if source.startswith("data:") else source.rsplit("/", 1)[-1])
        if self.room <= 0:
            self.left_out += 1
            return f"<p class='quiet text missing'>{name}</p>"
        try:
            url = _data_url(load_image(image_source(source)))
        except (OSError, ValueError) as error:
            return f"<p class='quiet text missing'>{html.escape(str(error)[:300])}</p>"
        self.room -= len(url)
        return f'<img src="{url}" alt="{name}" loading="lazy">'


def _data_url(image: Image.Image) -> str:
    image = image.copy()
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
