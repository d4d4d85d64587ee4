"""Charts as inline SVG: lines with marks, and bars. Colours are classes, so that one picture serves light, dark and paper.

Knows nothing of bundles. Series differ by their marks, too, not by colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 340, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 44
_BAR_HEIGHT, _BAR_GAP, _BAR_LEFT, _BAR_RIGHT = 18, 10, 210, 150
_BAR_WIDTH = 640


@dataclass(frozen=True)
class Axis:
    """One axis of a line chart."""

    label: str
    low: float
    high: float

    def share(self, value: float) -> float:
        """Where a value lies between low and high, 0..1."""
        width = self.high - self.low
        return min(1.0, max(0.0, (value - self.low) / width)) if width > 0 else 0.5

    def ticks(self) -> list[float]:
        """Some five round values from low to high."""
        rough = (self.high - self.low) / 5
        if rough <= 0:
            return [self.low]
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [step * i for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class Series:
    """One line: its points by rising x, drawn as the ``number``-th colour and mark."""

    name: str
    points: Sequence[tuple[float, float]]
    number: int


@dataclass(frozen=True)
class Bar:
    """One bar; ``high`` is where its whisker ends, at the value for none."""

    name: str
    value: float
    high: float
    text: str


def line_chart(description: str, series: Sequence[Series], x: Axis, y: Axis, *, diagonal: bool = False) -> str:
    """Lines with marks over two axes; ``diagonal`` draws where x equals y. ``description`` is read to the blind."""
    parts = [_open(_WIDTH, _HEIGHT, description), _grid(x, y)]
    if diagonal:
        (x1, y1), (x2, y2) = _place(x, y, x.low, y.low), _place(x, y, x.high, y.high)
        parts.append(f'<line class="ideal" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
    for own in series:
        places = [_place(x, y, *point) for point in own.points]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        parts.append(f'<polyline class="line s{own.number}" points="{path}"/>')
        parts += [_mark(own.number, a, b) for a, b in places]
    return "".join([*parts, "</svg>"])


def bar_chart(description: str, bars: Sequence[Bar]) -> str:
    """Horizontal bars from 0, the value written behind each."""
    height = len(bars) * (_BAR_HEIGHT + _BAR_GAP) + _BAR_GAP
    longest = max((bar.high for bar in bars), default=0.0) or 1.0
    scale = (_BAR_WIDTH - _BAR_LEFT - _BAR_RIGHT) / longest
    parts = [_open(_BAR_WIDTH, height, description)]
    for number, bar in enumerate(bars):
        top = _BAR_GAP + number * (_BAR_HEIGHT + _BAR_GAP)
        middle, end, high = top + _BAR_HEIGHT / 2, _BAR_LEFT + bar.value * scale, _BAR_LEFT + bar.high * scale
        width = max(1.0, bar.value * scale)
        parts.append(f'<text class="end" x="{_BAR_LEFT - 8}" y="{middle + 4:.1f}">{escape(bar.name)}</text>')
        parts.append(f'<rect class="bar" x="{_BAR_LEFT}" y="{top}" width="{width:.1f}" height="{_BAR_HEIGHT}"/>')
        if bar.high > bar.value:
            parts.append(f'<path class="whisker" d="M{end:.1f} {middle:.1f}H{high:.1f}m0 -4v8"/>')
        parts.append(f'<text x="{high + 8:.1f}" y="{middle + 4:.1f}">{escape(bar.text)}</text>')
    return "".join([*parts, "</svg>"])


def legend(series: Sequence[Series]) -> str:
    """Mark and name of every series."""
    items = "".join(
        f'<li><svg class="key" viewBox="0 0 12 12" aria-hidden="true">{_mark(own.number, 6, 6)}</svg>'
        f"{escape(own.name)}</li>"
        for own in series
    )
    return f'<ul class="legend">{items}</ul>'


def _open(width: int, height: int, description: str) -> str:
    text = escape(description)
    return f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{text}"><title>{text}</title>'


def _place(x: Axis, y: Axis, first: float, second: float) -> tuple[float, float]:
    across = _LEFT + x.share(first) * (_WIDTH - _LEFT - _RIGHT)
    return across, _HEIGHT - _BOTTOM - y.share(second) * (_HEIGHT - _TOP - _BOTTOM)


def _grid(x: Axis, y: Axis) -> str:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = []
    for value in y.ticks():
        level = _place(x, y, x.low, value)[1]
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{level:.1f}" x2="{right}" y2="{level:.1f}"/>')
        parts.append(f'<text class="end" x="{_LEFT - 6}" y="{level + 4:.1f}">{value:.4g}</text>')
    for value in x.ticks():
        across = _place(x, y, value, y.low)[0]
        parts.append(f'<line class="grid" x1="{across:.1f}" y1="{_TOP}" x2="{across:.1f}" y2="{bottom}"/>')
        parts.append(f'<text class="middle" x="{across:.1f}" y="{bottom + 16}">{value:.4g}</text>')
    middle_x, middle_y = (_LEFT + right) / 2, (_TOP + bottom) / 2
    parts.append(f'<text class="middle" x="{middle_x}" y="{_HEIGHT - 8}">{escape(x.label)}</text>')
    turned = f'transform="rotate(-90 12 {middle_y})"'
    parts.append(f'<text class="middle" x="12" y="{middle_y}" {turned}>{escape(y.label)}</text>')
    return "".join(parts)


def _mark(number: int, x: float, y: float) -> str:
    kind = f'class="mark s{number}"'
    if number % 3 == 1:
        return f'<circle {kind} cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>'
    if number % 3 == 2:
        return f'<rect {kind} x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6"/>'
    return f'<path {kind} d="M{x:.1f} {y - 4:.1f}l4 7h-8z"/>'
