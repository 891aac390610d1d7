"""Numbers and Markdown tables as text."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalex.reporting.tables import escape, markdown_table, number, spread


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (12101, "12,101"), (0.06471, "0.0647"), (0.0, "0.0000"), (1.0, "1.00"), (27100.44, "27,100"),
        (12.34, "12.3"), (0.00004, "4.0e-05"), (-8.734, "-8.73"), (float("nan"), "–"), (None, "–"),
        (True, "yes"), ("text", "text"),
    ],
)  # fmt: skip
def test_numbers(value: object, said: str) -> None:
    assert number(value) == said


def test_spread_agrees_with_statistics() -> None:
    values = [0.061, 0.0652, 0.0598]
    assert spread(values) == f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f} (3)"
    assert spread([0.061]) == "0.0610"
    assert spread([]) == "–"
    assert spread([0.01, 0.01]) == "0.0100 ± 0.0000 (2)"


@given(st.text(max_size=40))
def test_escaped_text_stays_one_cell_without_tags(text: str) -> None:
    shown = escape(text)
    assert "\n" not in shown
    assert "<" not in shown
    bare = shown.replace("\\\\", "")
    assert bare.count("|") == bare.count("\\|")


def test_tables_line_up() -> None:
    assert markdown_table(["system", "r"], [["a", "0.1"], ["longest", "–"]]) == [
        "| system  |   r |",
        "| ------- | --: |",
        "| a       | 0.1 |",
        "| longest |   – |",
    ]
