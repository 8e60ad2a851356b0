"""Where a step's time goes, as one stacked bar in SVG."""

from html import escape

from ..planning.compiling import Plan

WIDTH, BAR, LINE, MARGIN = 720, 48, 22, 16
#: Told apart by people who see few colours too (Okabe and Ito 2008), and two greys.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#999999", "#333333", "#cccccc")


def to_svg(plan: Plan) -> str:
    """A picture of the step by component, the longest first; "" where the program does not fit."""
    if plan.cost is None:
        return ""
    cost, config = plan.cost, plan.config
    parts = sorted(
        ((name, seconds) for name, seconds in cost.by_component.items() if seconds), key=lambda part: -part[1]
    )
    total = sum(seconds for _, seconds in parts)
    title = (
        f"{config.plan}, {config.trainable}: {total * 1000:,.0f} ms, MFU {cost.mfu(plan.model_flops):.1%} (estimate)"
    )
    drawing, x, top = [], float(MARGIN), MARGIN + LINE
    for index, (name, seconds) in enumerate(parts):
        width, colour = (WIDTH - 2 * MARGIN) * seconds / total, COLOURS[index % len(COLOURS)]
        label = f"{name.replace('_', ' ')}: {seconds * 1000:,.1f} ms, {seconds / total:.1%}"
        y = top + BAR + MARGIN + index * LINE
        drawing += [
            f'<rect x="{x:.1f}" y="{top}" width="{width:.1f}" height="{BAR}" fill="{colour}">',
            f"<title>{escape(label)}</title></rect>",
            f'<rect x="{MARGIN}" y="{y}" width="12" height="12" fill="{colour}"/>',
            f'<text x="{MARGIN + 20}" y="{y + 11}">{escape(label)}</text>',
        ]
        x += width
    height = top + BAR + 2 * MARGIN + len(parts) * LINE
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="13">'
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>'
        f'<text x="{MARGIN}" y="{MARGIN + 6}" font-weight="bold">{escape(title)}</text>{"".join(drawing)}</svg>\n'
    )
