"""Source `canonical`: a folder that already has the layout of `data.columns`.

Such a folder brings its own dense ids, so both frames carry `item_id`; `prepare` joins by it and keeps the
given order of items and users. `source_id` is a mere label here and may be null or repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from catalex.data import columns as c
from catalex.data.sources.base import RawDomain, Source
from catalex.data.sources.events import EventColumns, events
from catalex.data.sources.reading import ROW, collect, columns_of, existing, require
from catalex.errors import user_error
from catalex.options import Options


class CanonicalOptions(Options):
    """Where the folder is."""

    folder: Path
    """Folder with `items.parquet`, `interactions.parquet` and optionally `images.parquet`."""


class Canonical(Source):
    """Reads `items.parquet`, `interactions.parquet` and, if there is one, `images.parquet`."""

    Options = CanonicalOptions

    def __init__(self, options: CanonicalOptions, place: str) -> None:
        self.options, self.place = options, place
        folder = options.folder.expanduser()
        self._items = folder / c.ITEMS_FILE
        self._events = folder / c.INTERACTIONS_FILE
        self._images = folder / c.IMAGES_FILE

    def files(self) -> Sequence[Path]:
        """Interactions, items, images."""
        found = [existing(self._events, "interactions file"), existing(self._items, "items file")]
        return [*found, existing(self._images, "images file")] if self._images.exists() else found

    def read(self) -> RawDomain:
        """Both tables with their own dense ids."""
        self.files()
        present = columns_of(self._items)
        require(self._items, [c.ITEM_ID], present)
        items = pl.scan_parquet(self._items, row_index_name=ROW, row_index_offset=1)
        items = items.select(ROW, *(name for name in c.ITEMS_SCHEMA.names if name in present))
        _whole_numbers(self._items, items, [c.ITEM_ID])
        present = columns_of(self._events)
        require(self._events, [c.USER_ID, c.ITEM_ID], present)
        frame = pl.scan_parquet(self._events, row_index_name=ROW, row_index_offset=1)
        order = [name for name in (c.TIMESTAMP, c.POSITION) if name in present and self._filled(frame, name)]
        _whole_numbers(self._events, frame, [c.USER_ID, c.ITEM_ID, *order])
        columns = EventColumns(
            c.USER_ID,
            c.ITEM_ID,
            c.TIMESTAMP if c.TIMESTAMP in order else None,
            c.POSITION if c.POSITION in order else None,
        )
        interactions = events(frame, columns, also=[c.ITEM_ID])
        return RawDomain(items, interactions, self._images if self._images.exists() else None)

    def _filled(self, frame: pl.LazyFrame, column: str) -> bool:
        """Whether a column has any value: in prepared folders without times `timestamp` is all null."""
        return bool(collect(frame.select(pl.col(column).count()), [self._events]).item())


def _whole_numbers(path: Path, frame: pl.LazyFrame, columns: Sequence[str]) -> None:
    schema = frame.collect_schema()
    for name in columns:
        if not schema[name].is_integer():
            remedy = "write it as int32, or use source 'tables' for other ids"
            raise user_error(
                f"column {name!r} must hold integers", place=path, value=str(schema[name]), remedy=remedy
            )
