"""Interactions as every source yields them: named columns, parsed times, and a mark on rows that are wrong.

Parsing is lazy and never raises by itself. A row that cannot be used is marked `INVALID`; whoever collects
the frame looks at that one bit and, if it is set anywhere, asks `explain_invalid` for the sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from catalex.data.columns import POSITION, SOURCE_ID, TIMESTAMP
from catalex.data.sources.reading import ROW, collect, locate
from catalex.errors import CatalexError, user_error

USER = "user"
INVALID = "invalid"
RATING = "rating"

LATEST = 4_102_444_800
"""2100-01-01 in Unix seconds. No interaction lies behind it; milliseconds read as seconds do."""

TIME_FORMATS = "seconds, milliseconds, iso, or a strptime pattern such as '%d/%m/%Y %H:%M'"


@dataclass(frozen=True)
class EventColumns:
    """Names of the raw columns."""

    user: str
    item: str
    timestamp: str | None = None
    position: str | None = None
    rating: str | None = None

    @property
    def named(self) -> list[str]:
        """All columns that are set."""
        return [
            n for n in (self.user, self.item, self.timestamp, self.position, self.rating) if n is not None
        ]


def check_time_format(time_format: str) -> str:
    """`time_format`, or a ValueError (for pydantic) that lists the choices."""
    if time_format in ("seconds", "milliseconds", "iso") or "%" in time_format:
        return time_format
    raise ValueError(f"must be {TIME_FORMATS}")


def events(
    frame: pl.LazyFrame,
    columns: EventColumns,
    *,
    time_format: str = "seconds",
    minimum_rating: float | None = None,
    also: Sequence[str] = (),
) -> pl.LazyFrame:
    """The interactions of a raw table, one row an event, in file order.

    Args:
        frame: Raw rows with `ROW`.
        columns: Names of the raw columns.
        time_format: One of `TIME_FORMATS`; columns of a date type need none. Times without a zone count as
        UTC. minimum_rating: Keep interactions with at least this rating; needs `columns.rating`. also:
        Further raw columns to pass through unchanged.

    Returns:
        `user` (string or int64), `source_id` (string), `timestamp` (int64 seconds) and `position` (int64)
        when there are such columns, `invalid`, and for messages `ROW` and the raw texts.
    """
    schema = frame.collect_schema()
    user = pl.col(columns.user)
    parsed = {
        USER: user.cast(pl.Int64, strict=False) if schema[columns.user].is_integer() else _text(user),
        SOURCE_ID: _text(pl.col(columns.item)),
    }
    raw = {USER: columns.user, SOURCE_ID: columns.item}
    if columns.timestamp is not None:
        parsed[TIMESTAMP] = seconds(pl.col(columns.timestamp), schema[columns.timestamp], time_format)
        raw[TIMESTAMP] = columns.timestamp
    if columns.position is not None:
        parsed[POSITION] = _integer(pl.col(columns.position), schema[columns.position])
        raw[POSITION] = columns.position
    if minimum_rating is not None and columns.rating is not None:
        parsed[RATING] = pl.col(columns.rating).cast(pl.Float64, strict=False)
        raw[RATING] = columns.rating
    frame = frame.select(
        ROW,
        *also,
        *(expression.alias(name) for name, expression in parsed.items()),
        *(pl.col(column).cast(pl.String).alias(_raw(name)) for name, column in raw.items()),
    )
    wrong = [pl.col(name).is_null() for name in parsed]
    if TIMESTAMP in parsed:
        wrong.append(~pl.col(TIMESTAMP).is_between(0, LATEST))
    if RATING in parsed:
        rating = pl.col(RATING)
        frame = frame.filter((rating >= minimum_rating) | rating.is_null() | rating.is_nan())
        wrong.append(rating.is_nan())
    return frame.with_columns(pl.any_horizontal(wrong).fill_null(value=True).alias(INVALID))


def seconds(column: pl.Expr, kind: pl.DataType, time_format: str) -> pl.Expr:
    """A raw time column as int64 Unix seconds; null where it cannot be read."""
    if kind.is_temporal():
        return column.cast(pl.Datetime("us")).dt.epoch("s")
    if time_format in ("seconds", "milliseconds"):
        number = _integer(column, kind)
        return number // 1000 if time_format == "milliseconds" else number
    text = column.cast(pl.String).str.strip_chars()
    if time_format != "iso":
        zone = "UTC" if "%z" in time_format or "%#z" in time_format else None
        return text.str.strptime(pl.Datetime("us", zone), time_format, strict=False).dt.epoch("s")
    text = text.str.replace("T", " ", literal=True).str.replace("Z$", "")
    plain = [
        text.str.strptime(pl.Datetime("us"), pattern, strict=False).dt.epoch("s")
        for pattern in ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M")
    ]
    date = text.str.strptime(pl.Date(), "%Y-%m-%d", strict=False).dt.epoch("s")
    zoned = text.str.strptime(pl.Datetime("us", "UTC"), "%Y-%m-%d %H:%M:%S%.f%#z", strict=False).dt.epoch("s")
    return pl.coalesce(*plain, date, zoned)


def _integer(column: pl.Expr, kind: pl.DataType) -> pl.Expr:
    """Whole numbers, also when written as 978300760.0; null where it is no number."""
    if kind.is_integer():
        return column.cast(pl.Int64, strict=False)
    rounded = column.cast(pl.Float64, strict=False).floor().cast(pl.Int64, strict=False)
    return rounded if kind.is_float() else pl.coalesce(column.cast(pl.Int64, strict=False), rounded)


def _text(column: pl.Expr) -> pl.Expr:
    """Strings, null where empty."""
    text = column.cast(pl.String)
    return pl.when(text != "").then(text)


def _raw(name: str) -> str:
    return f"raw {name}"


def explain_invalid(frame: pl.LazyFrame, files: Sequence[Path]) -> CatalexError:
    """The sentence for the first row that `events` marked."""
    row = collect(frame.filter(pl.col(INVALID)).head(1), files).row(0, named=True)
    place = locate(files, row[ROW])
    for name, noun in ((USER, "user"), (SOURCE_ID, "item")):
        if row[name] is None:
            remedy = f"fill it in, or drop such rows (source 'tables': keep: {{<{noun} column>: present}})"
            return user_error(f"the {noun} of an interaction is missing", place=place, remedy=remedy)
    if TIMESTAMP in row and row[TIMESTAMP] is None:
        return user_error(
            "the timestamp cannot be read",
            place=place,
            value=row[_raw(TIMESTAMP)],
            allowed=TIME_FORMATS,
            remedy="set time_format to what the file has, or correct the row",
        )
    if TIMESTAMP in row and not 0 <= row[TIMESTAMP] <= LATEST:
        milliseconds = 0 <= row[TIMESTAMP] // 1000 <= LATEST
        remedy = (
            "the column looks like milliseconds: set time_format: milliseconds"
            if milliseconds
            else "correct the row"
        )
        return user_error(
            "the timestamp lies outside the years 1970 to 2100",
            place=place,
            value=row[_raw(TIMESTAMP)],
            allowed=f"0 to {LATEST} seconds",
            remedy=remedy,
        )
    name = POSITION if POSITION in row and row[POSITION] is None else RATING
    return user_error(
        f"the {name} is not a number", place=place, value=row[_raw(name)], remedy="correct the row"
    )
