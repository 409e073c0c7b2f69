"""A chart of lines as an SVG: series of points over a logarithmic axis, with a legend.

Written here, since that is all that the benches draw: the picture stands in the docs, is the same
bytes for the same figures, and has colours that are told apart on white and on black.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from xml.sax.saxutils import escape

__all__ = ["svg"]

WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 40, 50
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
INK = "#808080"
# Ticks of the upright axis that are aimed at.
TICKS = 6

Points = Sequence[tuple[float, float]]


def svg(
    title: str, x_label: str, y_label: str, series: Mapping[str, Points], level: float | None = None
) -> str:
    """Return a chart.

    Parameters
    ----------
    title, x_label, y_label : str
    series : mapping
        Names to points (x, y) in order of x, which is above zero. Empty series are left out.
    level : float, optional
        A broken line at this y, as a truth that all strive for.

    Raises
    ------
    ValueError
        There is no point, or an x is not above zero, or a number is not finite.
    """
    shown = {name: points for name, points in series.items() if points}
    every = [point for points in shown.values() for point in points]
    if not every:
        raise ValueError("no points; expected one at least")
    if not all(math.isfinite(x) and math.isfinite(y) and x > 0 for x, y in every):
        raise ValueError("a point is not finite, or its x is not above zero")
    across = _Axis(math.log10(x) for x, _ in every)
    ys = [y for _, y in every] + ([] if level is None else [level])
    upright = _Axis(ys)

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + across.share(math.log10(x)) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - upright.share(y) * (HEIGHT - TOP - BOTTOM),
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="12" fill="{INK}">',
        _text(WIDTH / 2, 20, title, "middle", ' font-size="14"'),
        _text(WIDTH / 2, HEIGHT - 10, x_label, "middle"),
        f'<g transform="translate(16 {HEIGHT / 2:g}) rotate(-90)">{_text(0, 0, y_label)}</g>',
    ]
    low, high = HEIGHT - BOTTOM, TOP
    for x in _decades(10**across.low, 10**across.high):
        at, _ = place(x, upright.low)
        parts += [_line(at, low, at, high), _text(at, low + 18, f"{x:g}")]
    for y in _steps(upright.low, upright.high):
        _, at = place(10**across.low, y)
        parts += [_line(LEFT, at, WIDTH - RIGHT, at), _text(LEFT - 6, at + 4, f"{y:.4g}", "end")]
    if level is not None:
        _, at = place(10**across.low, level)
        parts.append(_line(LEFT, at, WIDTH - RIGHT, at, ' stroke-dasharray="6 4" stroke-width="2"'))
    for number, (name, points) in enumerate(shown.items()):
        colour = COLOURS[number % len(COLOURS)]
        places = [place(*point) for point in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        at = low - 12 - 18 * (len(shown) - 1 - number)
        parts.append(
            f'<rect x="{WIDTH - 240}" y="{at - 6}" width="14" height="4" fill="{colour}"/>'
        )
        parts.append(_text(WIDTH - 220, at, name, "start"))
    return "\n".join([*parts, "</svg>"]) + "\n"


class _Axis:
    """Values from the lowest to the highest, and a little more on both sides."""

    def __init__(self, values: Iterable[float]) -> None:
        known = list(values)
        room = 0.05 * (max(known) - min(known)) or 0.05
        self.low, self.high = min(known) - room, max(known) + room

    def share(self, value: float) -> float:
        """Return how far along the axis a value is, from 0 to 1."""
        return (value - self.low) / (self.high - self.low)


def _decades(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 of each power of ten in a range."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = (first * 10.0**power for power in powers for first in (1, 2, 5))
    return [tick for tick in ticks if low <= tick <= high]


def _steps(low: float, high: float) -> list[float]:
    """Return multiples of 1, 2 or 5 of a power of ten in a range, some TICKS."""
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(first * power for first in (1, 2, 5, 10) if first * power >= rough)
    return [step * n for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _line(x: float, y: float, to_x: float, to_y: float, more: str = ' opacity="0.3"') -> str:
    return f'<path d="M{x:.1f} {y:.1f} L{to_x:.1f} {to_y:.1f}" stroke="{INK}"{more}/>'


def _text(x: float, y: float, text: str, anchor: str = "middle", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(text)}</text>'
