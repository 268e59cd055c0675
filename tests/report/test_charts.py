"""A chart shows every value at its place, what is not finite as a cross, and nothing that a name could smuggle in."""

import json
import math
import re
from html.parser import HTMLParser

import pytest

from mypt.report.charts import Chart, Curve, Mark, axis_label, draw, thinned, ticks

NAN, INF = math.nan, math.inf


def chart(*curves: Curve, **options) -> str:
    return draw(Chart("a", "Title", "nats", [*curves], **options))


def block(html: str) -> dict:
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)[1])


def drawn(html: str, kind: str = "line s0") -> list[list[tuple[float, float]]]:
    """The strokes of a path, back in the units of the data."""
    left, right, bottom, top = block(html)["range"]
    path = re.search(rf'<path class="{kind}" d="([^"]*)"', html)[1]
    strokes = []
    for stroke in filter(None, path.split("M")):
        pairs = [pair.split() for pair in stroke.split("L")]
        strokes.append(
            [(left + float(x) / 1000 * (right - left), top - float(y) / 1000 * (top - bottom)) for x, y in pairs]
        )
    return strokes


def test_points_are_where_their_values_are():
    points = [(0, 5.5), (10, 4.0), (15, 4.25), (100, 2.0)]
    [stroke] = drawn(chart(Curve("a", points)))
    for (x, y), (there_x, there_y) in zip(points, stroke, strict=True):
        assert there_x == pytest.approx(x, abs=0.01) and there_y == pytest.approx(y, abs=0.01)


def test_axis_labels_are_where_their_values_are():
    html = chart(Curve("a", [(0, 1.0), (50, 3.0)]))
    left, right, bottom, top = block(html)["range"]
    labels = re.findall(r'<span(?: class="end")? style="(bottom|left):([\d.-]+)%">([\d.,-]+)</span>', html)
    assert {side for side, _, _ in labels} == {"bottom", "left"}
    for side, percent, label in labels:
        low, high = (bottom, top) if side == "bottom" else (left, right)
        assert low + float(percent) / 100 * (high - low) == pytest.approx(float(label), abs=(high - low) / 500)


@pytest.mark.parametrize("lost", [NAN, INF, -INF, None, 1e200])
def test_what_is_not_finite_breaks_the_line_and_is_a_cross(lost):
    html = chart(Curve("a", [(1, 2.0), (2, 2.1), (3, lost), (4, 2.2), (5, 2.3)]))
    assert [len(stroke) for stroke in drawn(html)] == [2, 2]
    [cross] = re.findall(r'<i class="cross s0" style="left:([\d.]+)%">', html)
    assert float(cross) == 50 and "NaN or infinite" in html
    assert block(html)["curves"][0]["y"] == [2.0, 2.1, None, 2.2, 2.3]


def test_a_curve_of_nothing_finite_is_still_shown():
    html = chart(Curve("a", [(1, NAN), (2, NAN)]))
    assert html.count('class="cross') == 2 and "2 NaN or infinite" in html


def test_no_points_no_chart_and_one_point_is_a_dot():
    assert chart(Curve("a", [])) == ""
    html = chart(Curve("a", [(7, 3.0)]))
    assert 'class="dot s0"' in html and block(html)["curves"][0]["x"] == [7]


def test_error_bars_and_levels_are_inside_the_chart():
    html = chart(Curve("a", [(0, 0.0), (1, 0.1)], errors=[0.0, 0.4]), levels=[(0.9, "tolerance")])
    bottom, top = block(html)["range"][2:]
    assert bottom < -0.3 and top > 0.9 and "tolerance" in html
    assert block(html)["curves"][0]["error"] == [0.0, 0.4]


def test_thinning_keeps_the_extremes_the_ends_and_what_is_lost():
    points = [(step, math.sin(step / 700)) for step in range(50_000)]
    points[12_345], points[40_000], points[31_000] = (12_345, 9.0), (40_000, -9.0), (31_000, NAN)
    few = thinned(Curve("a", points, smooth=True), most=1_000)
    assert len(few.points) < 1_600
    assert {(12_345, 9.0), (40_000, -9.0), points[0], points[-1]} <= set(few.points)
    assert any(step == 31_000 for step, _ in few.points)
    window = [y for _, y in points[20_000 - 1_666 : 20_000 + 1_667]]
    steps = [step for step, _ in few.points]
    near = min(range(len(steps)), key=lambda number: abs(steps[number] - 20_000))
    assert few.means[near] == pytest.approx(sum(window) / len(window), abs=0.05)
    assert few.means[steps.index(31_000)] is None
    assert [step for step, _ in few.points] == sorted(step for step, _ in few.points)


def test_few_points_are_all_kept():
    curve = Curve("a", [(step, 1.0) for step in range(1_000)])
    assert thinned(curve).points == curve.points


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (2.31, 5.9), (-0.77, 0.36), (0, 3e-3), (0, 123_456), (1e-9, 2e-9), (5.0, 5.000001)]
)
def test_ticks_are_round_inside_and_told_apart(low, high):
    found = ticks(low, high, 5)
    assert 2 <= len(found) <= 6 and found == sorted(found)
    assert all(low - 1e-9 * abs(low) <= tick <= high + 1e-9 * abs(high) for tick in found)
    step = found[1] - found[0]
    assert f"{step:.1e}"[0] in "125"
    labels = [axis_label(tick, found) for tick in found]
    assert len(set(labels)) == len(labels)


class Tags(HTMLParser):
    def __init__(self, html: str):
        super().__init__()
        self.found = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


@pytest.mark.parametrize(
    "name", ["</script><img src=x onerror=alert(1)>", '"><b onclick=a>', "a&lt;b>", "\u202e\x00\ud800"]
)
def test_no_name_becomes_markup(name):
    html = draw(
        Chart("a", name, name, [Curve(name, [(0, 1.0), (1, 2.0)])], [Mark(1, name)], [(1.0, name)], x_unit=name)
    )
    html.encode()
    tags = Tags(html).found
    assert {tag for tag, _ in tags} <= {
        *("figure", "figcaption", "h3", "p", "ul", "li", "b", "div", "span", "i", "svg", "path", "script")
    }
    assert not any(key.startswith("on") for _, attributes in tags for key in attributes)
    assert [tag for tag, _ in tags].count("script") == 1 and block(html)["marks"]
