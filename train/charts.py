"""Curves over the steps of a run, as HTML with SVG in it that fits any width; `report.css` and `report.js` go with it.

The SVG holds the lines only and is stretched to the space there is; what is written beside them is HTML, so that it
keeps its size on a phone.
"""

import json
import math
from html import escape
from statistics import fmean
from typing import NamedTuple

Points = list[tuple[int, float]]  # steps, ascending, and values; NaN where there was no finite one

WIDTH, HEIGHT = 1000, 1000  # of the SVG's own coordinates
BUCKETS = 400  # of steps, in a curve of more


class Curve(NamedTuple):
    """A line in a chart. `style`: "main", "faint" (what the main one is smoothed from) or "dots" (few and apart)."""

    name: str
    points: Points
    style: str = "main"


def smoothed(points: Points) -> Points:
    """The mean of some fiftieth of the curve around each of at most 400 steps, less at the ends; NaN is passed by."""
    half, last = max(1, len(points) // 100), len(points) - 1
    centres = sorted({round(last * index / (BUCKETS - 1)) for index in range(BUCKETS)}) if points else []
    windows = [_known(points[max(0, centre - half) : centre + half + 1]) for centre in centres]
    means = [fmean(window) if window else math.nan for window in windows]
    return [(points[centre][0], mean) for centre, mean in zip(centres, means, strict=True)]


def thinned(points: Points, buckets: int = BUCKETS) -> Points:
    """Of every stretch of steps its lowest and its highest point, so that no spike is lost."""
    if len(points) <= 2 * buckets:
        return points
    result: Points = []
    for bucket in range(buckets):
        part = points[len(points) * bucket // buckets : len(points) * (bucket + 1) // buckets]
        finite = [point for point in part if not math.isnan(point[1])]
        if not finite:
            result.append(part[0])
            continue
        low, high = (pick(finite, key=lambda point: point[1]) for pick in (min, max))
        result.extend(sorted({low, high}))
    return result


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between two, at most so many."""
    if high <= low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    spacing = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.ceil(low / spacing - 1e-9), math.floor(high / spacing + 1e-9)
    return [index * spacing for index in range(first, last + 1)]


def number(value: float) -> str:
    """For people: four digits, commas between thousands."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


class Frame(NamedTuple):
    """What a chart shows: steps from left to right, values from bottom to top."""

    first: int
    last: int
    low: float
    high: float

    def x(self, step: float) -> int:
        """Rounded, from 0 to WIDTH; in the middle where there is one step only."""
        return round(WIDTH * (step - self.first) / (self.last - self.first)) if self.last > self.first else WIDTH // 2

    def y(self, value: float) -> int:
        """Rounded, from 0 at the top to HEIGHT; what lies outside is drawn at the edge."""
        return round(HEIGHT * min(max((self.high - value) / (self.high - self.low), 0), 1))


def chart(title: str, curves: list[Curve], *, from_zero: bool = False, skipped: list[int] | None = None) -> str:
    """A figure with the curves; "" where none has a finite value.

    Args:
        title: what is shown, as plain text.
        curves: drawn in this order.
        from_zero: the vertical axis starts there.
        skipped: steps to mark at the bottom.
    """
    if not any(_known(curve.points) for curve in curves):
        return ""
    steps = [step for curve in curves for step, _ in curve.points]
    frame = Frame(min(steps), max(steps), *_limits(curves, from_zero))
    curves = [curve._replace(points=thinned(curve.points)) for curve in curves]
    vertical = ticks(frame.low, frame.high)
    horizontal = [tick for tick in ticks(frame.first, frame.last, 4) if tick == int(tick)] or [frame.first]
    drawing = [f'<path class="rules" d="{"".join(f"M0 {frame.y(tick)}h{WIDTH}" for tick in vertical)}"/>']
    for curve in curves:
        if curve.style == "dots":
            drawing.append(f'<path class="dashes" d="{_path(frame, curve.points, joined=True)}"/>')
        joined = curve.style != "dots" and len(curve.points) > 1
        style = curve.style if joined or curve.style == "dots" else f"{curve.style} alone"
        drawing.append(f'<path class="{style}" d="{_path(frame, curve.points, joined)}"/>')
    if skipped:
        marks = "".join(f"M{x} {HEIGHT}v-50" for x in sorted({frame.x(step) for step in skipped}))
        drawing.append(f'<path class="skipped" d="{marks}"/>')
    names = [(curve.style, curve.name) for curve in curves] + ([("skipped", "skipped step")] if skipped else [])
    legend = "".join(f'<span class="key {style}">{escape(name)}</span>' for style, name in names)
    latest = " · ".join(f"{curve.name} {_latest(curve.points)}" for curve in curves if curve.style != "faint")
    y_labels = "".join(f'<i style="top:{frame.y(tick) / HEIGHT:.1%}">{number(tick)}</i>' for tick in vertical)
    x_labels = "".join(f'<i style="left:{frame.x(tick) / WIDTH:.1%}">{int(tick):,}</i>' for tick in horizontal)
    return (
        f'<figure data-chart="{escape(_data(frame, curves))}"><figcaption><b>{escape(title)}</b>'
        f"<output>{escape(latest)}</output></figcaption>"
        f'<div class="plot"><svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(f"{title}, by step: {latest}")}">{"".join(drawing)}</svg>'
        f'<div class="y">{y_labels}</div><div class="x"><i class="unit">step</i>{x_labels}</div>'
        '<div class="cursor" hidden></div></div>'
        f'<p class="legend">{legend if len(names) > 1 else ""}</p></figure>'
    )


def _path(frame: Frame, points: Points, joined: bool) -> str:
    pieces, before = [], None
    for step, value in points:
        if math.isnan(value):
            before = None
            continue
        here = frame.x(step), frame.y(value)
        if before is None or not joined:
            pieces.append("M{} {}h0".format(*here))  # a dot, should nothing follow
        elif here != before:
            pieces.append("L{} {}".format(*here))
        before = here
    return "".join(pieces)


def _known(points: Points) -> list[float]:
    return [value for _, value in points if not math.isnan(value)]


def _limits(curves: list[Curve], from_zero: bool) -> tuple[float, float]:
    """All of the curves but, of long ones, the extreme hundredths: one spike would make a flat line of the rest.

    What a curve ends at is always shown.
    """
    shown = [0.0] if from_zero else []
    for curve in curves:
        if values := _known(curve.points):
            ordered, rest = sorted(values), len(values) // 100
            shown += [ordered[rest], ordered[-1 - rest]]
            shown += [] if curve.style == "faint" else values[-1:]
    low, high = min(shown), max(shown)
    margin = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
    return (low if from_zero and low == 0 else low - margin), high + margin


def _latest(points: Points) -> str:
    return next((number(value) for _, value in reversed(points) if not math.isnan(value)), "none")


def _data(frame: Frame, curves: list[Curve]) -> str:
    """What `report.js` shows of the step under the pointer."""
    lines = [
        {"name": curve.name, "points": [[step, _short(value)] for step, value in curve.points]} for curve in curves
    ]
    return json.dumps({"first": frame.first, "last": frame.last, "curves": lines}, separators=(",", ":"))


def _short(value: float) -> float | None:
    return None if math.isnan(value) else float(f"{value:.4g}")
