"""Row filters in a small declarative form: ``keep: {Quantity: ">0", "Customer ID": present}``.

=================== ======================================================================
condition           keeps a row when the cell
=================== ======================================================================
``>0`` ``>=0`` etc. is a number for which it holds (also ``<``, ``<=``)
``=UK`` ``!=UK``    is, or is not, this text (or this number)
``present``         is neither null nor empty
``matches RE``      contains a match of the regular expression (Rust syntax, linear time)
``lacks RE``        contains none
=================== ======================================================================

A list of conditions must hold together. A cell that is empty fulfils none of them. Nothing is ever evaluated
as code.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl

from catalex.errors import CatalexError, user_error

FORMS = ">N, >=N, <N, <=N, =VALUE, !=VALUE, present, matches REGEX, lacks REGEX"

_ORDER: dict[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


def keep_rows(frame: pl.LazyFrame, keep: Mapping[str, str | Sequence[str]], place: str) -> pl.LazyFrame:
    """The rows of `frame` that fulfil every condition.

    Args:
        keep: Column to condition, or to a list of conditions.
        place: Where the conditions were written, for messages.

    Raises:
        CatalexError: When a condition has none of the forms above.
    """
    for column, conditions in keep.items():
        for text in [conditions] if isinstance(conditions, str) else conditions:
            frame = frame.filter(condition(column, text, f"{place}.keep.{column}").fill_null(value=False))
    return frame


def condition(column: str, text: str, place: str) -> pl.Expr:
    """One condition as an expression."""
    cell = pl.col(column).cast(pl.String)
    number = cell.cast(pl.Float64, strict=False)
    text = text.strip()
    if text == "present":
        return cell.str.strip_chars() != ""
    if found := re.fullmatch(r"(matches|lacks)\s+(.+)", text):
        matches = cell.str.contains(_checked_pattern(found[2], place))
        return matches if found[1] == "matches" else ~matches
    if found := re.fullmatch(r"(>=|<=|>|<)\s*(.+)", text):
        bound = _number(found[2])
        if bound is None:
            raise _wrong(text, place)
        comparison: pl.Expr = _ORDER[found[1]](number, bound)
        return comparison
    if found := re.fullmatch(r"(!=|==?)\s*(.+)", text):
        bound = _number(found[2])
        same = cell == found[2]
        if bound is not None:
            same = same | (number == bound).fill_null(value=False)
        return ~same if found[1] == "!=" else same
    raise _wrong(text, place)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _wrong(text: str, place: str) -> CatalexError:
    return user_error(
        "the condition is not understood", place=place, value=text, allowed=FORMS, remedy="rewrite it"
    )


def _checked_pattern(pattern: str, place: str) -> str:
    try:
        pl.Series(["x"]).str.contains(pattern)
    except pl.exceptions.ComputeError:
        raise user_error(
            "the regular expression is not valid", place=place, value=pattern, remedy="correct it"
        ) from None
    return pattern
