"""Charts as SVG: what is drawn lies where the numbers say."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from model_export.report_charts import Axis, Bar, Series, bar_chart, legend, line_chart


def numbers(text: str) -> list[float]:
    """Every number of an attribute."""
    return [float(part) for part in re.findall(r"-?\d+\.?\d*", text)]


def test_ticks_are_round_and_within_the_axis() -> None:
    """Steps of 1, 2, 2.5 or 5 times a power of ten, ends included."""
    assert Axis("x", 0, 1).ticks() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert Axis("x", 0.9, 1).ticks() == pytest.approx([0.9, 0.92, 0.94, 0.96, 0.98, 1.0])
    assert Axis("x", 0, 0.037).ticks() == pytest.approx([0, 0.01, 0.02, 0.03])
    assert Axis("x", 3, 3).ticks() == [3]


def test_points_lie_by_their_values() -> None:
    """The corners of the axes are the corners of the grid, y upwards; what lies outside is put on the edge."""
    chart = line_chart("d", [Series("a", [(0, 0), (1, 1), (2, -1)], 1)], Axis("x", 0, 1), Axis("y", 0, 1))
    points = numbers(ElementTree.fromstring(chart).find("polyline").attrib["points"])  # type: ignore[union-attr]
    left, bottom, right, top = points[0], points[1], points[2], points[3]
    assert left < right and top < bottom
    assert points[4:] == [right, bottom]


def test_an_axis_without_width_puts_everything_in_the_middle() -> None:
    """One measurement alone is no reason to divide by zero."""
    chart = line_chart("d", [Series("a", [(3, 0.5)], 2)], Axis("x", 3, 3), Axis("y", 0, 1))
    assert ElementTree.fromstring(chart).find("polyline") is not None


def test_series_differ_by_mark_and_colour() -> None:
    """Three series, three kinds of marks, on the line and in the legend."""
    series = [Series(name, [(0, 0)], number) for number, name in enumerate("abc", start=1)]
    chart = ElementTree.fromstring(line_chart("d", series, Axis("x", 0, 1), Axis("y", 0, 1)))
    marks = {own.tag: own.attrib["class"] for own in chart.iter() if own.attrib.get("class", "").startswith("mark")}
    assert marks == {"circle": "mark s1", "rect": "mark s2", "path": "mark s3"}
    assert re.findall(r"mark s\d", legend(series)) == ["mark s1", "mark s2", "mark s3"]


def test_bars_are_as_long_as_their_values() -> None:
    """Twice the value, twice the width; a whisker only where there is something beyond the bar; nothing is no fault."""
    chart = ElementTree.fromstring(bar_chart("d", [Bar("a", 2, 4, "2 ms"), Bar("b", 1, 1, "1 ms")]))
    first, second = (float(bar.attrib["width"]) for bar in chart.iter("rect"))
    assert first == pytest.approx(2 * second, abs=0.2)
    assert len(list(chart.iter("path"))) == 1
    assert list(ElementTree.fromstring(bar_chart("d", [])).iter("rect")) == []
    assert len(list(ElementTree.fromstring(bar_chart("d", [Bar("a", 0, 0, "0")])).iter("rect"))) == 1


def test_texts_are_escaped() -> None:
    """Names with markup stay text."""
    bad = "<script>&\"'"
    series = [Series(bad, [(0, 0)], 1)]
    for chart in (line_chart(bad, series, Axis(bad, 0, 1), Axis(bad, 0, 1)), bar_chart(bad, [Bar(bad, 1, 1, bad)])):
        root = ElementTree.fromstring(chart)
        assert root.attrib["aria-label"] == bad and root.find("title").text == bad  # type: ignore[union-attr]
        assert not list(root.iter("script"))
    assert "<script>" not in legend(series)
