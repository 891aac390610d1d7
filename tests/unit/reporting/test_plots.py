"""Plots as inline SVG."""

from __future__ import annotations

import re

import pytest

from catalex.reporting.plots import (
    INK,
    MOST_POINTS,
    BarPanel,
    Dot,
    DotPanel,
    LinePanel,
    Series,
    bars,
    dots,
    lines,
    with_prefix,
)  # fmt: skip


def test_lines_follow_the_page_and_keep_text() -> None:
    svg = lines(
        [LinePanel("a < b $x_1$ 服装", "epoch", [Series("one", [1, 2], [3, 4]), Series("two", [1], [1])])]
    )
    assert svg.startswith("<svg")
    assert "currentColor" in svg
    assert INK not in svg
    assert "xmlns" not in svg
    assert "a &lt; b $x_1$ 服装" in svg
    assert ">one<" in svg


def test_plots_are_the_same_each_time() -> None:
    panel = LinePanel("t", "x", [Series("s", [1, 2, 3], [1, 2, 3])])
    assert lines([panel]) == lines([panel])


def test_long_curves_are_thinned() -> None:
    short = lines([LinePanel("t", "x", [Series("s", range(MOST_POINTS), range(MOST_POINTS))])])
    long = lines([LinePanel("t", "x", [Series("s", range(100_000), range(100_000))])])
    assert len(long) < 2 * len(short)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_any_number_of_panels(count: int) -> None:
    empty = [LinePanel(f"panel {i}", "x", [Series("s", [1], [0.0])], log=True) for i in range(count)]
    svg = lines(empty)
    assert all(f"panel {i}" in svg for i in range(count))
    assert bars([BarPanel("d", ["[0, 20)"], [Series("s", [0], [0.1])])] * count, "y", "x")
    assert dots([DotPanel("d", [Dot("s", 0.1, None, True), Dot("t", 0.1, 0.01, False)])] * count, "NDCG@10")


def test_more_series_than_colours() -> None:
    svg = lines([LinePanel("t", "x", [Series(f"s{i}", [1, 2], [i, i]) for i in range(40)])])
    assert ">s39<" in svg


def test_ids_of_two_plots_do_not_meet() -> None:
    svg = lines([LinePanel("t", "x", [Series("s", [1, 2], [1, 2])])])
    one, other = with_prefix(svg, "a"), with_prefix(svg, "b")
    found = [set(re.findall(r'\bid="([^"]*)"', text)) for text in (one, other)]
    assert found[0].isdisjoint(found[1])
    targets = set(re.findall(r'href="#([^"]*)"', one)) | set(re.findall(r"url\(#([^)]*)\)", one))
    assert targets <= found[0]
