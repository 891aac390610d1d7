"""Numbers and tables as text: one way to write a number everywhere, and Markdown tables that line up."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

MISSING = "–"
"""Shown where there is no value."""


def number(value: object, digits: int = 4) -> str:
    """A value for people: integers with thousands separators, fractions with `digits` decimals.

    >>> number(12101), number(0.06471), number(27100.44), number(None)
    ('12,101', '0.0647', '27,100', '–')
    """
    if value is None or value == "":
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    if not math.isfinite(value):
        return MISSING
    # Large numbers do not gain from decimals; tiny ones would be shown as nought, which they are not.
    places = max(0, min(digits, 2 - math.floor(math.log10(abs(value))))) if abs(value) >= 1 else digits
    if 0 < abs(value) < 0.5 * 10**-digits:
        return f"{value:.1e}"
    return f"{value:,.{places}f}"


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and the standard deviation (n - 1) when there is more than one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def spread(values: Sequence[float], digits: int = 4) -> str:
    """Mean ± standard deviation (number of seeds); a single value alone.

    >>> spread([0.06, 0.07, 0.08]), spread([0.06])
    ('0.0700 ± 0.0100 (3)', '0.0600')
    """
    if not values:
        return MISSING
    mean, deviation = mean_and_deviation(values)
    if deviation is None:
        return number(values[0], digits)
    # Zero spread is a fact (a system without randomness) and is written with the digits of its mean.
    return f"{number(mean, digits)} ± {number(deviation, digits)} ({len(values)})"


def shortened(text: object, longest: int) -> str:
    """Text on one line of at most `longest` characters; what is cut off is marked.

    >>> shortened("a  long title", 8)
    'a long…'
    """
    flat = " ".join(str(text).split())
    return flat if len(flat) <= longest else flat[: longest - 1].rstrip() + "…"


def escape(text: str) -> str:
    """Text that is safe inside a cell or line of Markdown: no cell, tag, link or emphasis begins in it."""
    flat = " ".join(text.split())
    for sign in "\\`*_[]|":
        flat = flat.replace(sign, "\\" + sign)
    return flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> list[str]:
    """Lines of a Markdown table; the first `text_columns` are set left, numbers right. Cells are Markdown."""
    widths = [max(3, *(len(row[i]) for row in (header, *rows))) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if i < text_columns else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * width if i < text_columns else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return [line(header), line(rule), *map(line, rows)]
