"""The drops of a comparison as a figure for a paper: a panel for each bit width, a dot for each method. SVG, imports no torch."""

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from core.comparison.table import Row
from core.generation.methods import METHODS, in_order

_PANEL, _LINE, _LEFT, _TOP, _GAP = 200, 22, 110, 28, 24  # pixels
_FONT = 'font-family="sans-serif" font-size="12"'


def as_svg(table: Sequence[Row]) -> str:
    """Drops in points with error bars of one standard deviation between seeds, or of one standard error with a single seed."""
    widths = list(dict.fromkeys(row.width for row in table))
    methods = in_order({row.method for row in table})
    titles = {row.method: row.title for row in table}
    height = _TOP + _LINE * len(methods) + 44
    width = _LEFT + len(widths) * (_PANEL + _GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {_FONT}>',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for place, method in enumerate(methods):
        parts.append(f'<text x="{_LEFT - 10}" y="{_middle(place) + 4}" text-anchor="end">{escape(titles[method])}</text>')
    for number, name in enumerate(widths):
        own = {row.method: row for row in table if row.width == name}
        parts += _panel(name, own, methods, _LEFT + number * (_PANEL + _GAP))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _middle(place: int) -> int:
    return _TOP + _LINE * place + _LINE // 2


def _error(row: Row) -> float:
    return row.standard_error if row.spread is None else row.spread


def _panel(name: str, own: dict[str, Row], methods: Sequence[str], left: int) -> list[str]:
    """One bit width. own: method -> row."""
    # a reference, such as noise, may be far worse than all methods: then it is at the right edge
    scaled = [row for row in own.values() if not METHODS[row.method].is_reference] or list(own.values())
    low = min(0.0, *(row.drop - _error(row) for row in scaled))
    high = max(0.5, *(row.drop + _error(row) for row in scaled))
    step = _step(high - low)
    low, high = math.floor(low / step) * step, math.ceil(high / step) * step
    bottom = _TOP + _LINE * len(methods)

    def x(drop: float) -> float:
        return left + (min(max(drop, low), high) - low) / (high - low) * _PANEL

    parts = [f'<text x="{left + _PANEL / 2}" y="16" text-anchor="middle" font-weight="bold">{escape(name)}</text>']
    for tick in range(round((high - low) / step) + 1):
        at = x(low + tick * step)
        parts.append(f'<line x1="{at:.1f}" y1="{_TOP}" x2="{at:.1f}" y2="{bottom}" stroke="#ddd"/>')
        parts.append(f'<text x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{low + tick * step:g}</text>')
    parts.append(f'<text x="{left + _PANEL / 2}" y="{bottom + 36}" text-anchor="middle">drop in top-1 (points)</text>')
    for place, method in enumerate(methods):
        if (row := own.get(method)) is not None:
            y = _middle(place)
            start, end = x(row.drop - _error(row)), x(row.drop + _error(row))
            parts.append(f'<line x1="{start:.1f}" y1="{y}" x2="{end:.1f}" y2="{y}" stroke="#0072b2" stroke-width="1.5"/>')
            if row.drop > high:
                parts.append(f'<text x="{x(high) - 6:.1f}" y="{y + 4}" text-anchor="end">{row.drop:.1f} →</text>')
                continue
            parts.append(f'<circle cx="{x(row.drop):.1f}" cy="{y}" r="3.5" fill="#0072b2"/>')
    return parts


def _step(extent: float) -> float:
    """The distance of ticks: 1, 2 or 5 times a power of ten, so that there are at most five intervals."""
    power = 10 ** math.floor(math.log10(extent / 4))
    return next(power * factor for factor in (1, 2, 5, 10) if extent / (power * factor) <= 5)
