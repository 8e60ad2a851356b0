"""The chart of a report: a score by the number of shots."""

import html
import math

WIDTH, HEIGHT = 340, 200
LEFT, RIGHT, TOP, BOTTOM = 40, 12, 14, 40  # margins


def chart(name: str | None, points: list[tuple[int, dict[str, float]]]) -> str:
    """A figure with the score and its interval at each number of shots; "" where there are not two.

    Args:
        name: of the score.
        points: shots, and the score's `value`, `low` and `high`.
    """
    if len(points) < 2:
        return ""
    points = sorted(points, key=lambda point: point[0])
    ticks = _ticks(min(score["low"] for _, score in points), max(score["high"] for _, score in points))
    bottom, top = ticks[0], ticks[-1]

    def x(place: int) -> float:
        return LEFT + 20 + (WIDTH - LEFT - RIGHT - 40) * place / (len(points) - 1)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (top - value) / (top - bottom)

    rules = "".join(
        f'<path class="rule" d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}"/>'
        f'<text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
        for tick in ticks
    )
    line = "L".join(f"{x(place):.1f} {y(score['value']):.1f}" for place, (_, score) in enumerate(points))
    marks = "".join(
        f'<path class="interval" d="M{x(place):.1f} {y(score["low"]):.1f}V{y(score["high"]):.1f}"/>'
        f'<circle cx="{x(place):.1f}" cy="{y(score["value"]):.1f}" r="4.5"/>'
        f'<text x="{x(place):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{shots}</text>'
        for place, (shots, score) in enumerate(points)
    )
    unit = f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">shots</text>'
    told = ", ".join(f"{score['value']:.1f} at {shots}" for shots, score in points)
    return (
        f"<figure><figcaption>{html.escape(str(name))} by shots</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(f"{name} by shots: {told}")}">'
        f'{rules}<path class="line" d="M{line}"/>{marks}{unit}</svg></figure>'
    )


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers, four or so, from one at or below `low` to one at or above `high`."""
    rough = max(high - low, 1e-3) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    spacing = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first, last = math.floor(low / spacing), math.ceil(high / spacing)
    return [index * spacing for index in range(first, max(last, first + 1) + 1)]
