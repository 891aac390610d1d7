"""A catalogue as one Parquet file: what a shop's own tables come in as, and what they can be compared with.

==================== ========================================================================================
column               meaning
==================== ========================================================================================
key                  the caller's id of the item; ``source_id`` does as well
title, brand,        text, all optional; ``categories`` is a list of texts
categories,
description,
keywords, extra      ``extra``: a JSON object
text                 the whole text, in place of what the columns above would give
in_stock             true where it is missing
attributes.<name>    a number, null where an item lacks it
image_data           bytes of an image file
identifier           written by an export, ignored by an import: identifiers are given, never taken
==================== ========================================================================================

The ``items.parquet`` of a domain folder is such a file too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from catalex.artifacts import write_parquet
from catalex.data import columns as c
from catalex.errors import CatalexError, nearest, user_error
from catalex.progress import Track
from catalex.serving.catalogue import LiveCatalogue
from catalex.serving.items import Change, Item, NewItem

KEY, IMAGE, PREFIX = "key", "image_data", "attributes."
TEXTS = (c.TITLE, c.BRAND, c.DESCRIPTION, c.KEYWORDS, "text", c.EXTRA)
IGNORED = ("identifier", c.ITEM_ID, c.IMAGE)
"""Columns that an export or a domain folder has and an import leaves alone."""
CHUNK = 1000
"""Items of one transaction: few enough that other writers wait for less than about a second."""


@dataclass(frozen=True)
class Imported:
    """What an import did."""

    added: int
    updated: int
    unchanged: int


def import_items(live: LiveCatalogue, path: Path, *, chunk: int = CHUNK) -> Imported:
    """Add the items of a Parquet file, and update those that the catalogue has.

    Every `chunk` items are one transaction. A killed import is simply given again: what is there already
    stays as it is. An item that is there gets the file's title, categories, stock and attributes.

    Raises:
        CatalexError: Before anything is changed where the file or a column is wrong; with the rows before it
            imported where a row is.
    """
    file = _opened(path)
    added = updated = unchanged = 0
    with Track("import", total=file.metadata.num_rows, unit="items") as track:
        for first, rows in _chunks(file, chunk):
            new = [_new_item(row, f"{path}, row {first + place}") for place, row in enumerate(rows)]
            try:
                known = {one.key: item for one in new if (item := live.get(one.key)) is not None}
                fresh = [one for one in new if one.key not in known]
                changes = [
                    change
                    for one, row in zip(new, rows, strict=True)
                    if one.key in known and (change := _change(known[one.key], one, row)) is not None
                ]
                live.add(fresh)
                if changes:
                    live.change(changes)
            except CatalexError as error:
                raise user_error(
                    str(error).rstrip("."),
                    place=f"{path}, rows {first} to {first + len(rows) - 1}",
                    remedy="the rows before these are imported; mend the file and import it again",
                ) from None
            added, updated = added + len(fresh), updated + len(changes)
            unchanged += len(known) - len(changes)
            track.advance(len(rows))
    return Imported(added, updated, unchanged)


def export_items(live: LiveCatalogue, path: Path, *, images: bool = False) -> int:
    """Write every item to a Parquet file, by number; returns how many.

    Args:
        images: Also the image files of the items that came with one.
    """
    items = list(live)
    names = sorted({name for item in items for name in item.attributes})
    columns: dict[str, Any] = {
        KEY: pa.array([item.key for item in items], pa.string()),
        c.TITLE: pa.array([item.title for item in items], pa.string()),
        "text": pa.array([item.text for item in items], pa.string()),
        c.CATEGORIES: pa.array([list(item.categories) for item in items], pa.list_(pa.string())),
        "in_stock": pa.array([item.in_stock for item in items], pa.bool_()),
        "identifier": pa.array([list(item.identifier) for item in items], pa.list_(pa.int32())),
    }
    for name in names:
        columns[PREFIX + name] = pa.array([item.attributes.get(name) for item in items], pa.float64())
    if images:
        columns[IMAGE] = pa.array([live.image(item.key) for item in items], pa.binary())
    write_parquet(path, pa.table(columns))
    return len(items)


def _opened(path: Path) -> Any:
    """The file, its columns checked."""
    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError:
        raise user_error("the file does not exist", place=path, remedy="check the path") from None
    except (pa.ArrowException, OSError):
        raise user_error("this is not a Parquet file", place=path, remedy="export the table again") from None
    schema = file.schema_arrow
    keys = [name for name in (KEY, c.SOURCE_ID) if name in schema.names]
    if not keys:
        raise user_error(
            f"column {KEY!r} is missing",
            place=path,
            allowed=schema.names,
            remedy=f"add {KEY!r}, an id of your own",
        )
    known = (KEY, c.SOURCE_ID, *TEXTS, c.CATEGORIES, "in_stock", IMAGE, *IGNORED)
    for field in schema:
        if field.name in known:
            continue
        if not field.name.startswith(PREFIX) or field.name == PREFIX:
            close = nearest(field.name, known)
            otherwise = f"rename or drop it; columns of numbers are called {PREFIX}<name>"
            raise user_error(
                f"unknown column {field.name!r}",
                place=path,
                allowed=[*known, f"{PREFIX}<name>"],
                remedy=f"did you mean {close!r}?" if close else otherwise,
            )
        if not (pa.types.is_integer(field.type) or pa.types.is_floating(field.type)):
            raise user_error(f"column {field.name!r} must hold numbers", place=path, value=str(field.type))
    return file


def _chunks(file: Any, chunk: int) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Rows of a file, `chunk` at a time, with the number of the first."""
    first = 0
    names = [name for name in file.schema_arrow.names if name not in IGNORED]
    for batch in file.iter_batches(chunk, columns=names):
        rows = batch.to_pylist()
        yield first, rows
        first += len(rows)


def _new_item(row: dict[str, Any], place: str) -> NewItem:
    """A row as a new item."""
    key = row.get(KEY, row.get(c.SOURCE_ID))
    if key is None:
        raise user_error("the item has no key", place=place, remedy="give every item an id of its own")
    try:
        extra = json.loads(row.get(c.EXTRA) or "{}")
        assert isinstance(extra, dict)
    except (ValueError, AssertionError):
        raise user_error("this is no JSON object", place=f"{place}, extra", value=row[c.EXTRA]) from None
    stock = row.get("in_stock")
    return NewItem(
        str(key),
        title=_text(row.get(c.TITLE)),
        brand=_text(row.get(c.BRAND)),
        categories=tuple(str(name) for name in row.get(c.CATEGORIES) or ()),
        description=_text(row.get(c.DESCRIPTION)),
        keywords=_text(row.get(c.KEYWORDS)),
        extra=extra,
        text=_text(row.get("text")),
        image=row.get(IMAGE),
        in_stock=True if stock is None else bool(stock),
        attributes={
            name.removeprefix(PREFIX): float(value)
            for name, value in row.items()
            if name.startswith(PREFIX) and value is not None
        },
    )


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _change(item: Item, new: NewItem, row: dict[str, Any]) -> Change | None:
    """What a row changes of an item that is there: only columns that the file has. None for nothing."""
    given = {n.removeprefix(PREFIX): v for n, v in row.items() if n.startswith(PREFIX)}
    wanted: dict[str, float | None] = {n: None if v is None else float(v) for n, v in given.items()}
    attributes = {n: v for n, v in wanted.items() if item.attributes.get(n) != v}
    title = new.title if new.title and new.title != item.title else None
    categories = new.categories if c.CATEGORIES in row and new.categories != item.categories else None
    stock = new.in_stock if row.get("in_stock") is not None and new.in_stock != item.in_stock else None
    if not attributes and title is None and categories is None and stock is None:
        return None
    return Change(item.key, title, categories, stock, attributes)
