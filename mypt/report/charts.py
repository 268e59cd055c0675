"""Curves as HTML and SVG of our own, without a script: pure functions of numbers. page.js adds what a pointer shows.

The drawing is stretched to the width of the page, its lines keep their width, and all text is HTML, so that a chart
reads on a phone as on a screen. A value that is NaN or infinite is a cross at the top of its chart.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from itertools import pairwise

from mypt.report.html import plain, text_of
from mypt.training.callbacks.pictures import smoothed

MOST_POINTS = 1_000  # of a curve: of more, the lowest and the highest of each group are drawn
COLORS = 6  # of the style sheet, s0 to s5; from the seventh curve on they come again, dashed
STEPS = "optimizer step"
_SIZE = 1_000  # of the drawing, in its own units
_AT_END = ' class="end"'  # a label that would stand out of its chart
_MOST_DOTS = 80  # of a curve whose points are marked
_NOT_FINITE = "NaN or infinite"
_LARGEST = 1e100  # a value beyond it is drawn as infinite


@dataclass(frozen=True)
class Curve:
    """points: (x, y), x ascending; a y that is None, NaN or infinite is shown as such.

    color: number of the curve. smooth: draw a line of means through the points, which are then thin; `thinned` works
    out its `means`. errors: half the height of the bar at each point. dots: whether points are marked.
    """

    name: str
    points: Sequence[tuple[float, float | None]]
    color: int = 0
    smooth: bool = False
    errors: Sequence[float] | None = None
    dots: bool = False
    means: Sequence[float | None] | None = None


@dataclass(frozen=True)
class Mark:
    """Something that happened at x: a vertical line. kind: event, or bad."""

    x: float
    text: str
    kind: str = "event"


@dataclass(frozen=True)
class Chart:
    """form: how a value is written: fixed, signed, count or rate. levels: horizontal lines (y, words). floor: the
    lowest y of the axis is at most this."""

    name: str
    title: str
    unit: str
    curves: list[Curve]
    marks: list[Mark] = field(default_factory=list)
    levels: list[tuple[float, str]] = field(default_factory=list)
    form: str = "fixed"
    floor: float | None = None
    x_unit: str = STEPS


def draw(chart: Chart) -> str:
    """The chart as a <figure>; empty without a point. A block of JSON in it has what a pointer shows."""
    curves = [thinned(curve) for curve in chart.curves if curve.points]
    if not curves:
        return ""
    xs = [x for curve in curves for x, _ in curve.points] + [mark.x for mark in chart.marks]
    left, right = _widened(min(xs), max(xs), 0.0)
    bottom, top = _y_range(chart, curves)
    place = _Place(left, right, bottom, top)
    y_ticks, x_ticks = ticks(bottom, top, 5), ticks(left, right, 7 if right < 10_000 else 4)
    if chart.x_unit == STEPS:
        x_ticks = [x for x in x_ticks if x == int(x)]
    lost = [(curve, x) for curve in curves for x, y in curve.points if not is_finite(y)]
    svg = [f'<path class="grid" d="M0 {place.y(y)}H{_SIZE}"/>' for y in y_ticks]
    svg += [
        f'<path class="{"level" if name else "zero"}" d="M0 {place.y(y)}H{_SIZE}"/>'
        for y, name in chart.levels
        if bottom <= y <= top
    ]
    svg += [f'<path class="mark {mark.kind}" d="M{place.x(mark.x)} 0V{_SIZE}"/>' for mark in chart.marks]
    for curve in curves:
        svg += _paths(curve, place)
    crosses = "".join(
        f'<i class="cross s{curve.color % COLORS}" style="left:{place.percent(x)}%">\u00d7</i>' for curve, x in lost
    )
    words = "".join(
        f'<span class="words" style="bottom:{place.height(y)}%">{text_of(name)}</span>'
        for y, name in chart.levels
        if name and bottom <= y <= top
    )
    y_labels = "".join(
        f'<span style="bottom:{place.height(y)}%">{escape(axis_label(y, y_ticks))}</span>' for y in y_ticks
    )
    x_labels = "".join(
        f'<span{_AT_END if x > right - (right - left) / 20 else ""} style="left:{place.percent(x)}%">'
        f"{escape(axis_label(x, x_ticks))}</span>"
        for x in x_ticks
    )
    return (
        f'<figure class="chart" id="{chart.name}"><figcaption><h3>{text_of(chart.title)}</h3>'
        f'<p class="unit">{text_of(chart.unit)}</p>{_legend(chart, curves, bool(lost))}</figcaption>'
        f'<div class="frame"><div class="y">{y_labels}</div>'
        f'<div class="plot" tabindex="0" role="img" aria-label="{text_of(_summary(chart, curves))}">'
        f'<svg viewBox="0 0 {_SIZE} {_SIZE}" preserveAspectRatio="none" aria-hidden="true">{"".join(svg)}</svg>'
        f"{crosses}{words}</div>"
        f'<div class="x">{x_labels}</div></div><p class="x-unit">{text_of(chart.x_unit)}</p>'
        f'<script type="application/json">{_data(chart, curves, place)}</script></figure>'
    )


class _Place:
    """Where values are: in the drawing, and in percent of it."""

    def __init__(self, left: float, right: float, bottom: float, top: float):
        self.left, self.right, self.bottom, self.top = left, right, bottom, top

    def x(self, value: float) -> str:
        return _short(_SIZE * (value - self.left) / (self.right - self.left))

    def y(self, value: float) -> str:
        share = (value - self.bottom) / (self.top - self.bottom)
        return _short(_SIZE * (1 - min(max(share, -1.0), 2.0)))

    def percent(self, x: float) -> str:
        return _short(100 * (x - self.left) / (self.right - self.left))

    def height(self, y: float) -> str:
        return _short(100 * (y - self.bottom) / (self.top - self.bottom))


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def is_finite(value: float | None) -> bool:
    """Whether a value has a place in a chart."""
    return value is not None and abs(value) < _LARGEST  # not of a NaN


def thinned(curve: Curve, most: int = MOST_POINTS) -> Curve:
    """The curve with at most about `most` points, its extremes and some of what is not finite among them."""
    points = curve.points
    chosen = list(range(len(points))) if len(points) <= most else _chosen(points, most)
    return replace(
        curve,
        points=[points[number] for number in chosen],
        errors=[curve.errors[number] for number in chosen] if curve.errors else None,
        means=_means(points, chosen) if curve.smooth else None,
    )


def _chosen(points: Sequence[tuple[float, float | None]], most: int) -> list[int]:
    """Numbers of the points to draw: of each group the lowest, the highest and one that is not finite."""
    groups, kept = most // 2, {0, len(points) - 1}
    for group in range(groups):
        numbers = range(group * len(points) // groups, (group + 1) * len(points) // groups)
        finite = [number for number in numbers if is_finite(points[number][1])]
        if len(finite) < len(numbers):
            kept.add(next(number for number in numbers if not is_finite(points[number][1])))
        if finite:
            kept |= {min(finite, key=lambda n: points[n][1]), max(finite, key=lambda n: points[n][1])}
    return sorted(kept)


def _means(points: Sequence[tuple[float, float | None]], chosen: Sequence[int]) -> list[float | None]:
    """`smoothed` over the values that are finite; None where one is not."""
    finite = [number for number, (_, y) in enumerate(points) if is_finite(y)]
    place = {number: index for index, number in enumerate(finite)}
    shown = [number for number in chosen if number in place]
    means = smoothed([points[number][1] for number in finite], [place[number] for number in shown])
    found = dict(zip(shown, means, strict=True))
    return [found.get(number) for number in chosen]


def _y_range(chart: Chart, curves: list[Curve]) -> tuple[float, float]:
    values = [y for y, _ in chart.levels]
    for curve in curves:
        errors = curve.errors or [0.0] * len(curve.points)
        for (_, y), error in zip(curve.points, errors, strict=True):
            if is_finite(y):
                values += [y - error, y + error] if is_finite(error) else [y]
    values = values or [0.0, 1.0]
    low, high = min(values), max(values)
    if chart.floor is not None and low >= chart.floor:
        return chart.floor, _widened(chart.floor, high, 0.06)[1]
    return _widened(low, high, 0.06)


def _widened(low: float, high: float, share: float) -> tuple[float, float]:
    """A range that is not empty, and a share of itself wider at each end."""
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        room = abs(high) * 0.05 or 1.0
        return low - room * (share > 0), high + room
    return low - share * (high - low), high + share * (high - low)


def ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` + 1 round numbers from `low` to `high`: steps of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(times * power for times in (1, 2, 5, 10) if times * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def axis_label(value: float, among: Sequence[float]) -> str:
    """A tick as it is written: all ticks of an axis with as many digits as tell them apart."""
    step = min((b - a for a, b in pairwise(among)), default=abs(value) or 1.0)
    largest = max(map(abs, among), default=0.0)
    if largest and largest < 1e-3:
        return f"{value:.{max(0, math.ceil(math.log10(largest / step)))}e}".replace("e-0", "e-") if value else "0"
    if largest >= 1e6:
        return f"{value / 1e6:,g}M"
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:,.{digits}f}"


def _paths(curve: Curve, place: _Place) -> Iterable[str]:
    """The lines of a curve, broken where it is not finite; error bars; dots, which are lines of no length."""
    look = f"s{curve.color % COLORS}{' again' if curve.color >= COLORS else ''}"
    if curve.errors:
        bars = "".join(
            f"M{place.x(x)} {place.y(y - error)}V{place.y(y + error)}"
            for (x, y), error in zip(curve.points, curve.errors, strict=True)
            if is_finite(y) and is_finite(error) and error
        )
        if bars:
            yield f'<path class="bar {look}" d="{bars}"/>'
    lines = [(curve.points, "thin" if curve.means else "line")]
    if curve.means:
        lines.append(([(x, y) for (x, _), y in zip(curve.points, curve.means, strict=True)], "line"))
    for points, kind in lines:
        path, pen_down = [], False
        for x, y in points:
            if is_finite(y):
                path.append(f"{'L' if pen_down else 'M'}{place.x(x)} {place.y(y)}")
            pen_down = is_finite(y)
        yield f'<path class="{kind} {look}" d="{"".join(path)}"/>'
    single = sum(is_finite(y) for _, y in curve.points) == 1
    if (curve.dots and len(curve.points) <= _MOST_DOTS) or single:
        dots = "".join(f"M{place.x(x)} {place.y(y)}h0" for x, y in curve.points if is_finite(y))
        yield f'<path class="dot {look}" d="{dots}"/>'


def _legend(chart: Chart, curves: list[Curve], lost: bool) -> str:
    items = [
        f'<li><b class="key s{curve.color % COLORS}{" again" if curve.color >= COLORS else ""}"></b>'
        f"{text_of(curve.name)}</li>"
        for curve in curves
        if curve.name
    ]
    if lost:
        items.append(f'<li><b class="key cross-key">\u00d7</b>{_NOT_FINITE}</li>')
    kinds = {mark.kind for mark in chart.marks}
    if "bad" in kinds:
        items.append(f'<li><b class="key bad-key"></b>step with a value that is {_NOT_FINITE}</li>')
    if kinds - {"bad"}:
        items.append('<li><b class="key mark-key"></b>event</li>')
    return f'<ul class="legend">{"".join(items)}</ul>' if len(items) > 1 or lost else ""


def _summary(chart: Chart, curves: list[Curve]) -> str:
    """The chart in words, for those who do not see it."""
    parts = []
    for curve in curves:
        finite = [(x, y) for x, y in curve.points if is_finite(y)]
        lost = len(curve.points) - len(finite)
        words = f"{curve.name or chart.title}: "
        words += f"{finite[0][1]:.4g} at {finite[0][0]:g}, {finite[-1][1]:.4g} at {finite[-1][0]:g}" if finite else ""
        parts.append(words + (f"{', ' if finite else ''}{lost} {_NOT_FINITE}" if lost else ""))
    return f"{chart.title}, {chart.unit}. {'; '.join(parts)}"


def _data(chart: Chart, curves: list[Curve], place: _Place) -> str:
    """For page.js. Every "<" is escaped, so that no name ends the block."""
    content = {
        "x": plain(chart.x_unit),
        "form": chart.form,
        "range": [place.left, place.right, place.bottom, place.top],
        "curves": [
            {
                "name": plain(curve.name or chart.title),
                "look": f"s{curve.color % COLORS}",
                "x": [x for x, _ in curve.points],
                "y": [float(f"{y:.6g}") if is_finite(y) else None for _, y in curve.points],
            }
            | ({"error": [float(f"{e:.4g}") if is_finite(e) else None for e in curve.errors]} if curve.errors else {})
            for curve in curves
        ],
        "marks": [[mark.x, plain(mark.text)] for mark in chart.marks],
    }
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
