from __future__ import annotations

import math
from xml.etree import ElementTree as ET

import pytest

import line_chart

SPACE = "{http://www.w3.org/2000/svg}"


def test_a_line_and_a_name_for_each_series_that_has_points() -> None:
    series = {"ours & theirs": [(1.0, -9.0), (10.0, -8.5)], "one": [(3.0, -8.7)], "none": []}
    root = ET.fromstring(line_chart.svg("t", "x", "y", series, level=-8.0))
    lines = root.findall(f"{SPACE}polyline")
    assert len(lines) == 2
    assert len(root.findall(f"{SPACE}circle")) == 3
    texts = [text.text for text in root.iter(f"{SPACE}text")]
    assert {"t", "x", "y", "ours & theirs", "one", "1", "2", "5", "10", "-9", "-8"} <= set(texts)
    assert "none" not in texts


def test_what_is_later_and_higher_is_drawn_so() -> None:
    root = ET.fromstring(line_chart.svg("", "", "", {"one": [(1.0, 0.0), (10.0, 1.0), (100, 3)]}))
    line = root.find(f"{SPACE}polyline")
    assert line is not None
    places = [tuple(map(float, pair.split(","))) for pair in line.get("points", "").split()]
    (x, y), (x1, y1), (x2, y2) = places
    # a decade is as wide as another, and two of y as high as twice one
    assert x1 - x == pytest.approx(x2 - x1, abs=0.2)
    assert 2 * (y - y1) == pytest.approx(y1 - y2, abs=0.3)
    for at_x, at_y in places:
        assert line_chart.LEFT < at_x < line_chart.WIDTH - line_chart.RIGHT
        assert line_chart.TOP < at_y < line_chart.HEIGHT - line_chart.BOTTOM


def test_a_single_point_is_drawn() -> None:
    assert "<circle" in line_chart.svg("t", "x", "y", {"one": [(1.0, 2.0)]})


@pytest.mark.parametrize("points", [[], [(0.0, 1.0)], [(1.0, math.nan)], [(math.inf, 1.0)]])
def test_what_cannot_be_drawn_is_refused(points: list[tuple[float, float]]) -> None:
    with pytest.raises(ValueError, match=r"no points|not finite"):
        line_chart.svg("t", "x", "y", {"one": points})
