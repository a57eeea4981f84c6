"""How cost grows with the catalog, as a small SVG. Our own code: a plotting library would be the largest dependency."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from tests.support.bench.measure import Point

DRAWN = ("memory", "processor time of a flip", "flip -> slice, p50")
"""Points of other kinds are for the table of what a bridge carries."""
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 300, 220, 52, 34, 34


def svg(points: Sequence[Point]) -> str:
    """One small chart for each kind of point, side by side; both axes linear from 0 (x: logarithmic)."""
    kinds = list(dict.fromkeys((point.what, point.unit) for point in points))
    charts = [
        _chart(n * WIDTH, what, unit, sorted({(p.size, p.value) for p in points if p.what == what}))
        for n, (what, unit) in enumerate(kinds)
    ]
    width = WIDTH * len(kinds)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" height="{HEIGHT}" '
        f'font-family="sans-serif" font-size="11" role="img" aria-label="How cost grows with the number of services">\n'
        f'<rect width="{width}" height="{HEIGHT}" fill="#fff"/>\n' + "\n".join(charts) + "\n</svg>\n"
    )


def _chart(left: int, what: str, unit: str, values: Sequence[tuple[int, float]]) -> str:
    """Points joined by a line."""
    top = nice(max(value for _, value in values))
    sizes = [size for size, _ in values]
    low, high = math.log(min(sizes)), math.log(max(sizes))
    x0, x1, y0, y1 = left + LEFT, left + WIDTH - 24, HEIGHT - BOTTOM, TOP

    def x(size: int) -> float:
        return x0 + 12 + ((math.log(size) - low) / (high - low) if high > low else 0.5) * (x1 - x0 - 24)

    def y(value: float) -> float:
        return y0 - value / top * (y0 - y1)

    parts = [f'<text x="{x0}" y="18" font-weight="bold">{escape(what)} ({escape(unit)})</text>']
    for step in range(5):
        value = top * step / 4
        parts.append(f'<line x1="{x0}" x2="{x1}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{x0 - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    parts += [f'<text x="{x(size):.1f}" y="{y0 + 16}" text-anchor="middle">{size:,}</text>' for size in sizes]
    parts.append(f'<text x="{(x0 + x1) / 2:.0f}" y="{y0 + 30}" text-anchor="middle">services</text>')
    line = " ".join(f"{x(size):.1f},{y(value):.1f}" for size, value in values)
    parts.append(f'<polyline points="{line}" fill="none" stroke="#1f6feb" stroke-width="2"/>')
    parts += [f'<circle cx="{x(s):.1f}" cy="{y(v):.1f}" r="3" fill="#1f6feb"/>' for s, v in values]
    return "\n".join(parts)


def nice(value: float) -> float:
    """The end of an axis: the least of 1, 2, 4, 8 times a power of ten that is not below `value`."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 8, 10) if step * power >= value * (1 - 1e-9))
