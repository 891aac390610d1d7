"""Source `canonical`: a folder that already has the layout of `data.columns`.

Such a folder brings its own dense ids, so both frames carry `item_id`; `prepare` joins by it and keeps the given order
of items and users. `source_id` is a mere label here and may be null or repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from catalex.data import columns as c
from catalex.data.sources.base import RawDomain, Source
from catalex.data.sources.events import INVALID, LATEST, USER, _raw
from catalex.data.sources.reading import ROW, columns_of, existing, require
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
        self._items, self._events, self._images = (
            folder / name for name in (c.ITEMS_FILE, c.INTERACTIONS_FILE, c.IMAGES_FILE)
        )

    def files(self) -> Sequence[Path]:
        """Interactions, items, images."""
        found = [existing(self._events, "interactions file"), existing(self._items, "items file")]
        return [*found, existing(self._images, "images file")] if self._images.exists() else found

    def read(self) -> RawDomain:
        """Both tables with their own dense ids."""
        self.files()
        columns = columns_of(self._items)
        require(self._items, [c.ITEM_ID], columns)
        present = [name for name in c.ITEMS_SCHEMA.names if name in columns]
        items = pl.scan_parquet(self._items, row_index_name=ROW, row_index_offset=1).select(ROW, *present)
        columns = columns_of(self._events)
        require(self._events, [c.USER_ID, c.ITEM_ID], columns)
        order = [name for name in (c.TIMESTAMP, c.POSITION) if name in columns]
        frame = pl.scan_parquet(self._events, row_index_name=ROW, row_index_offset=1)
        frame = frame.rename({c.USER_ID: USER}).select(ROW, USER, c.ITEM_ID, *order)
        raw = {USER: USER, c.SOURCE_ID: c.ITEM_ID, **{name: name for name in order}}
        frame = frame.with_columns(
            pl.col(USER).cast(pl.Int64, strict=False),
            pl.col(c.ITEM_ID).cast(pl.Int64, strict=False),
            pl.col(c.ITEM_ID).cast(pl.String).alias(c.SOURCE_ID),
            *(pl.col(name).cast(pl.Int64, strict=False) for name in order),
            *(pl.col(column).cast(pl.String).alias(_raw(name)) for name, column in raw.items()),
        )
        wrong = [pl.col(name).is_null() for name in (USER, c.ITEM_ID, *order)]
        if c.TIMESTAMP in order:
            wrong.append(~pl.col(c.TIMESTAMP).is_between(0, LATEST))
        frame = frame.with_columns(pl.any_horizontal(wrong).fill_null(value=True).alias(INVALID))
        return RawDomain(items, frame, self._images if self._images.exists() else None)
