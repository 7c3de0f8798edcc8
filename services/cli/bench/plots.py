"""Plots as SVG, made by hand: the report needs no library and no script to be read."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 460, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 14, 38
_MOST_TICKS = 8
_LINEAR_UP_TO = 5


@dataclass(frozen=True)
class Line:
    """A line of a plot.

    Attributes:
        name: For the legend.
        points: x and y; a y of None is a gap.
        style: The class of its style: `now`, `then`, `other`.
    """

    name: str
    points: Sequence[tuple[float, float | None]]
    style: str = "now"


def curve_plot(title: str, lines: Sequence[Line], mark: float | None = None) -> str:
    """Returns which share of the values is at most x, over x in ms.

    The axis is logarithmic where the values are that far apart.

    Args:
        title: What the values are.
        lines: Points are (value, share 0 to 1).
        mark: A value to be marked, such as a limit.
    """
    values = [x for line in lines for x, _ in line.points if x > 0]
    if not values:
        return ""
    low, high = min(values), max(values)
    low, high = min(low, mark or low) / 1.1, max(high, low * 1.2, mark or 0) * 1.1
    is_log = high / low > _LINEAR_UP_TO

    def across(x: float) -> float:
        at = max(x, low)
        share = math.log(at / low) / math.log(high / low) if is_log else (at - low) / (high - low)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def up(y: float) -> float:
        return _HEIGHT - _BOTTOM - y * (_HEIGHT - _TOP - _BOTTOM)

    ticks = _log_ticks(low, high) if is_log else _ticks(low, high)
    parts = [_grid_x(across(x), _short(x)) for x in ticks if low <= x <= high]
    parts += [_grid_y(up(y), f"{100 * y:.0f} %") for y in (0, 0.25, 0.5, 0.75, 1)]
    if mark is not None:
        at = across(mark)
        parts.append(
            f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{up(0):.1f}"/>'
        )
        parts.append(f'<text class="note" x="{at + 4:.1f}" y="{_TOP + 9}">limit</text>')
    for line in lines:
        points = [(across(x), up(y)) for x, y in line.points if y is not None]
        parts.append(_polyline(points, line))
    return _figure(title, "ms", parts, lines)


def time_plot(title: str, lines: Sequence[Line], end: float) -> str:
    """Returns lines over the seconds of the run, from 0 to `end`."""
    values = [y for line in lines for _, y in line.points if y is not None]
    if not values or end <= 0:
        return ""
    steps = _ticks(0.0, max(values) or 1.0)
    top = steps[-1]

    def across(x: float) -> float:
        return _LEFT + x / end * (_WIDTH - _LEFT - _RIGHT)

    def up(y: float) -> float:
        return _HEIGHT - _BOTTOM - y / top * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_grid_x(across(x), _short(x)) for x in _ticks(0.0, end) if x <= end]
    parts += [_grid_y(up(y), _short(y)) for y in steps]
    for line in lines:
        piece: list[tuple[float, float]] = []
        for x, y in [*line.points, (0.0, None)]:
            if y is not None:
                piece.append((across(x), up(y)))
            elif piece:
                parts.append(_polyline(piece, line))
                piece = []
    return _figure(title, "seconds", parts, lines)


def bar_plot(title: str, values: Sequence[tuple[str, float, str]]) -> str:
    """Returns bars, each with a name and a text about its value."""
    if not values:
        return ""
    most = max(value for _, value, _ in values) or 1.0
    row, left = 24, 130
    height = row * len(values) + 12
    parts = []
    for place, (name, value, text) in enumerate(values):
        y = 6 + place * row
        width = value / most * (_WIDTH - left - 120)
        shown = name if len(name) <= 18 else f"{name[:17]}…"
        parts.append(
            f'<g><title>{escape(name)}: {escape(text)}</title><text x="{left - 8}" y="{y + 14}" '
            f'text-anchor="end">{escape(shown)}</text><rect class="bar" x="{left}" y="{y + 3}" '
            f'width="{max(width, 1):.1f}" height="{row - 9}" rx="2"/><text '
            f'x="{left + width + 6:.1f}" y="{y + 14}">{escape(text)}</text></g>'
        )
    return _wrapped(title, parts, height, "")


def _figure(title: str, unit: str, parts: Sequence[str], lines: Sequence[Line]) -> str:
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    label = f'<text class="note" x="{middle}" y="{_HEIGHT - 4}" text-anchor="middle">{unit}</text>'
    legend = ""
    if len(lines) > 1:
        keys = (f'<span class="key {line.style}">{escape(line.name)}</span>' for line in lines)
        legend = f'<div class="legend">{"".join(keys)}</div>'
    return _wrapped(title, [*parts, label], _HEIGHT, legend)


def _wrapped(title: str, parts: Sequence[str], height: int, legend: str) -> str:
    name = escape(title)
    return (
        f'<figure><figcaption>{name}</figcaption>{legend}<svg role="img" aria-label="{name}" '
        f'viewBox="0 0 {_WIDTH} {height}">{"".join(parts)}</svg></figure>'
    )


def _polyline(points: Sequence[tuple[float, float]], line: Line) -> str:
    if len(points) == 1:
        x, y = points[0]
        return f'<circle class="{line.style}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>'
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    name = escape(line.name)
    return f'<polyline class="{line.style}" points="{path}"><title>{name}</title></polyline>'


def _grid_x(x: float, text: str) -> str:
    bottom = _HEIGHT - _BOTTOM
    return (
        f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}"/>'
        f'<text x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{text}</text>'
    )


def _grid_y(y: float, text: str) -> str:
    return (
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
    )


def _ticks(low: float, high: float) -> list[float]:
    """Returns round numbers from below `low` to the first that is not below `high`."""
    raw = (high - low) / 5
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(s * magnitude for s in (1, 2, 2.5, 5, 10) if s * magnitude >= raw * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step * 0.999)
    return [number * step for number in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Returns round numbers between two values, a bounded number of them."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 3, 4, 5, 6, 7, 8), (1, 2, 5), (1, 3), (1,)):
        found = [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]
        if len(found) <= _MOST_TICKS:
            return found
    return found[:: math.ceil(len(found) / _MOST_TICKS)]


def _short(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 10_000 else f"{value:.6g}"
