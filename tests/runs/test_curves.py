import re
from math import nan
from xml.etree import ElementTree

import pytest

from cct_lightning.runs.curves import Series, draw_curves


def paths(svg, colour):
    """The points of each line of a colour: one list for each unbroken stretch."""
    found = [node.get("d") for node in ElementTree.fromstring(svg).iter("path") if f"stroke: var(--{colour})" in (node.get("style") or "")]
    return [[tuple(map(float, point.split())) for point in re.split(r"[ML]", stretch)[1:]] for d in found for stretch in re.findall(r"M[^M]+", d)]


def test_lines_go_where_their_values_are():
    svg = draw_curves("Loss", [Series("training", [1, 2, 4], [4.0, 2.0, 1.0], "orange"), Series("validation", [1, 2, 4], [3, 3, 3], "blue")], "epoch")
    (a, b, c), _ = paths(svg, "orange")  # the other one is in the legend
    assert (c[0] - b[0]) / (b[0] - a[0]) == pytest.approx(2, rel=1e-4)
    assert (b[1] - a[1]) / (c[1] - b[1]) == pytest.approx(2, rel=1e-4)
    assert a[1] < b[1] < c[1]  # y counts from the top
    flat, _ = paths(svg, "blue")
    assert len({y for _, y in flat}) == 1


def test_a_value_that_is_no_number_leaves_a_gap_and_a_lone_one_a_dot():
    assert [len(stretch) for stretch in paths(draw_curves("Loss", [Series("a", range(5), [1, 2, nan, 2, 1], "blue")], "epoch"), "blue")] == [2, 2]
    lone = draw_curves("Loss", [Series("a", [1, 2], [0.5, nan], "blue")], "epoch")
    assert "<use" in lone
    assert "<use" not in draw_curves("Loss", [Series("a", [1, 2], [0.5, 0.6], "blue")], "epoch")


def test_text_is_text_and_colours_are_the_page_s():
    svg = draw_curves(
        "Validation accuracy", [Series("x", [1, 2], [0.5, 1.0], "blue", dot=1), Series("raw", [1, 2], [0.4, 0.9], "grey", True)], "epoch", True
    )
    root = ElementTree.fromstring(svg)
    words = ["".join(node.itertext()).strip() for node in root.iter("text")]
    assert {"epoch", "x", "raw"} <= set(words)
    assert any(re.fullmatch(r"[\d.]+ %", word) for word in words)
    assert root.get("aria-label") == "Validation accuracy"
    assert set(re.findall(r"(?:stroke|fill): ([^;\"]+)", svg)) <= {"none", "var(--blue)", "var(--soft)", "var(--ink)", "var(--line)"}
    assert "stroke-dasharray" in svg
    assert "font-family" not in svg


def test_several_on_a_page_have_no_name_in_common_and_are_the_same_each_time():
    lines = [Series("a", [1], [1.0], "blue")]
    drawn = [draw_curves(title, lines, "epoch") for title in ("Loss", "Learning rate")]
    names = [set(re.findall(r' id="([^"]+)"', svg)) for svg in drawn]
    assert names[0]  # of the dot, for one
    assert not names[0] & names[1]
    for svg in drawn:
        assert set(re.findall(r'(?:href="|url\()#([\w-]+)', svg)) == set(re.findall(r' id="([^"]+)"', svg))
    assert draw_curves("Loss", lines, "epoch") == drawn[0]
