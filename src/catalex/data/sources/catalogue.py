"""Item tables as every source yields them: text fields, lists of categories, further fields as JSON."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence

import polars as pl

from catalex.data.columns import CATEGORIES, EXTRA, IMAGE, SOURCE_ID, TEXT_COLUMNS
from catalex.data.sources.reading import ROW

ITEM_FIELDS = (SOURCE_ID, *TEXT_COLUMNS, IMAGE)
"""Fields of an item that a source may map to a raw column."""


def catalogue(
    frame: pl.LazyFrame,
    fields: Mapping[str, str],
    *,
    separator: str = "|",
    extra: Sequence[str] = (),
    clean: bool = False,
) -> pl.LazyFrame:
    """The items of a raw table, one row an item, in file order.

    Args:
        frame: Raw rows with `ROW`.
        fields: Name in `ITEM_FIELDS` to raw column.
        separator: Between the categories of one cell; cells that hold a list need none.
        extra: Raw columns that go into the JSON object `extra` under their own names.
        clean: Remove HTML tags, unescape entities and collapse white space in text.

    Returns:
        `ROW`, the mapped fields and, if wanted, `extra`. Empty text is null. Text of any length is kept: the
        encoder truncates, not the data.
    """
    schema = frame.collect_schema()
    expressions = []
    for name, column in fields.items():
        if name == CATEGORIES:
            expressions.append(labels(pl.col(column), schema[column], separator, clean=clean).alias(name))
        elif name == SOURCE_ID:
            identity = pl.col(column).cast(pl.String)
            expressions.append(pl.when(identity != "").then(identity).alias(name))
        else:
            expressions.append(text(pl.col(column), schema[column], clean=clean).alias(name))
    if extra:
        fields_of_extra = pl.struct([pl.col(name).cast(pl.String, strict=False) for name in extra])
        expressions.append(fields_of_extra.map_batches(_to_json, return_dtype=pl.String).alias(EXTRA))
    return frame.select(ROW, *expressions)


def text(column: pl.Expr, kind: pl.DataType, *, clean: bool = False) -> pl.Expr:
    """One string a cell; lists, and strings that hold a JSON list, are joined by spaces."""
    if isinstance(kind, pl.List):
        column = column.cast(pl.List(pl.String)).list.join(" ", ignore_nulls=True)

    def tidy(values: pl.Series) -> pl.Series:
        return pl.Series(values.name, [_tidy(value, clean) for value in values], dtype=pl.String)

    return column.cast(pl.String).map_batches(tidy, return_dtype=pl.String)


def labels(column: pl.Expr, kind: pl.DataType, separator: str, *, clean: bool = False) -> pl.Expr:
    """A list of strings a cell: lists as they are, strings split at `separator`; never null, maybe empty."""
    wanted = pl.List(pl.String)
    column = column.cast(wanted) if isinstance(kind, pl.List) else column.cast(pl.String)

    def split(values: pl.Series) -> pl.Series:
        cells = [_labels(value, separator) for value in values]
        if clean:
            cells = [[plain(label) for label in cell] for cell in cells]
        return pl.Series(values.name, [[label for label in cell if label] for cell in cells], dtype=wanted)

    return column.map_batches(split, return_dtype=wanted)


def plain(value: str) -> str:
    """Text without HTML tags, entities and repeated white space.

    >>> plain("Tom &amp; Jerry <b>1</b>  x")
    'Tom & Jerry 1 x'
    """
    if "&" in value:
        value = html.unescape(value)
    if "<" in value:
        value = re.sub(r"</?[A-Za-z][^<>]*>", " ", value)
    return " ".join(value.split())


def _tidy(value: str | None, clean: bool) -> str | None:
    if value is None:
        return None
    if value.startswith("["):
        parts = _json_list(value)
        value = value if parts is None else " ".join(parts)
    value = plain(value) if clean else value.strip()
    return value or None


def _labels(value: str | pl.Series | None, separator: str) -> list[str]:
    if value is None:
        return []
    if isinstance(value, pl.Series):
        return [label.strip() for label in value if label]
    parts = _json_list(value) if value.startswith("[") else None
    return [label.strip() for label in (value.split(separator) if parts is None else parts)]


def _json_list(value: str) -> list[str] | None:
    """The strings of a JSON list, or of the first list in it (Amazon's category paths); else None."""
    try:
        found = json.loads(value)
    except json.JSONDecodeError:
        return None
    if not isinstance(found, list):
        return None
    if found and isinstance(found[0], list):
        found = found[0]
    return [str(part) for part in found if part is not None]


def _to_json(rows: pl.Series) -> pl.Series:
    """Structs as JSON objects without their null fields; null when nothing is left."""
    texts = []
    for row in rows:
        present = {name: value for name, value in (row or {}).items() if value not in (None, "")}
        texts.append(json.dumps(present, ensure_ascii=False) if present else None)
    return pl.Series(rows.name, texts, dtype=pl.String)
