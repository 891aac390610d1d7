"""Source `tables`: anybody's Parquet, CSV, TSV or JSONL, plain or compressed, by naming the columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import polars as pl
from pydantic import AfterValidator, Field

from catalex.data import columns as c
from catalex.data.sources.base import RawDomain, Source
from catalex.data.sources.catalogue import ITEM_FIELDS, catalogue
from catalex.data.sources.conditions import keep_rows
from catalex.data.sources.events import EventColumns, check_time_format, events
from catalex.data.sources.reading import ROW, Encoding, columns_of, matching, open_table
from catalex.errors import user_error
from catalex.options import Options


class InteractionColumns(Options):
    """Names of the columns of the interactions table.

    A name that is not set is used when the table has such a column; a name that is set must be there; null
    leaves the column out.
    """

    user: str = "user"
    """Who."""
    item: str = "item"
    """What: the id that the items table uses too."""
    timestamp: str | None = "timestamp"
    """When; read as `time_format` says."""
    position: str | None = "position"
    """Order within the user, a whole number; breaks ties of the timestamp."""
    rating: str | None = "rating"
    """How much; only read when `minimum_rating` is set."""


class ItemColumns(Options):
    """Names of the columns of the items table, with the same rule for names that are not set."""

    id: str = "id"
    """The id that the interactions use; ignored when items come from the interactions table."""
    title: str | None = "title"
    """Name of the item."""
    brand: str | None = "brand"
    """Maker or shop."""
    categories: str | None = "categories"
    """A list, a JSON list, or text with `category_separator`."""
    description: str | None = "description"
    """Long text."""
    keywords: str | None = "keywords"
    """Short derived text."""
    image: str | None = "image"
    """Path or URL of a picture; relative paths are taken from `image_folder`."""
    extra: tuple[str, ...] = ()
    """Further columns to keep, as fields of one JSON object."""


class TablesOptions(Options):
    """Files, column names and formats."""

    interactions: str
    """Path, or a pattern such as ``part-*.parquet`` for a table in several files."""
    items: str | None = None
    """Path or pattern of the items table; null: items come from columns of the interactions table."""
    columns: InteractionColumns = InteractionColumns()
    """Columns of the interactions table."""
    item_columns: ItemColumns = ItemColumns()
    """Columns of the items table."""
    category_separator: str = "|"
    """Between the categories of one cell, as in MovieLens."""
    time_format: Annotated[str, AfterValidator(check_time_format)] = "seconds"
    """seconds, milliseconds, iso, or a strptime pattern."""
    minimum_rating: float | None = None
    """Keep interactions rated at least so; null keeps all."""
    keep: dict[str, str | tuple[str, ...]] = Field(default_factory=dict)
    """Row filters of the interactions table; see `conditions`."""
    image_folder: Path | None = None
    """Folder that relative image paths start from."""
    encoding: Encoding = "utf8"
    """Of CSV and TSV; utf8-lossy replaces bytes that are not UTF-8."""


class Tables(Source):
    """Generic tables."""

    Options = TablesOptions

    def __init__(self, options: TablesOptions, place: str) -> None:
        self.options, self.place = options, place

    def files(self) -> Sequence[Path]:
        """Interactions, then items."""
        found = matching(self.options.interactions, "interactions file")
        return [*found, *matching(self.options.items, "items file")] if self.options.items else found

    def read(self) -> RawDomain:
        """Both tables; without an items file, items are those of the interactions, by first appearance."""
        options = self.options
        paths = matching(options.interactions, "interactions file")
        present = columns_of(paths[0])
        chosen = _chosen(options.columns, present)
        if options.minimum_rating is not None and chosen.get("rating") is None:
            remedy = "set columns.rating, or remove minimum_rating"
            raise user_error(
                "minimum_rating needs a rating column", place=self.place, allowed=present, remedy=remedy
            )
        columns = EventColumns(**chosen)
        own = {} if options.items else _item_fields(options.item_columns, present, columns.item)
        extra = () if options.items else options.item_columns.extra
        frame = open_table(
            paths, [*columns.named, *options.keep, *own.values(), *extra], encoding=options.encoding
        )
        frame = keep_rows(frame, options.keep, self.place)
        interactions = events(
            frame, columns, time_format=options.time_format, minimum_rating=options.minimum_rating
        )
        if options.items is None:
            items = catalogue(
                _first_of_each(frame, own, extra), own, separator=options.category_separator, extra=extra
            )
        else:
            items = self._items(options.items)
        return RawDomain(self._with_image_folder(items), interactions)

    def _items(self, pattern: str) -> pl.LazyFrame:
        options = self.options
        paths = matching(pattern, "items file")
        fields = _item_fields(options.item_columns, columns_of(paths[0]), options.item_columns.id)
        extra = options.item_columns.extra
        frame = open_table(paths, [*fields.values(), *extra], encoding=options.encoding)
        return catalogue(frame, fields, separator=options.category_separator, extra=extra)

    def _with_image_folder(self, items: pl.LazyFrame) -> pl.LazyFrame:
        folder = self.options.image_folder
        if folder is None or c.IMAGE not in items.collect_schema():
            return items
        image = pl.col(c.IMAGE)
        relative = ~image.str.contains(r"^(/|[A-Za-z][A-Za-z0-9+.-]*://)")
        return items.with_columns(
            pl.when(relative).then(pl.lit(f"{folder}/") + image).otherwise(image).alias(c.IMAGE)
        )


def _chosen(columns: Options, present: Sequence[str]) -> dict[str, str]:
    """Option name to column: names that were set, and defaults that the table has (user, item always)."""
    chosen = {}
    for name, column in columns.model_dump().items():
        if isinstance(column, str) and (
            name in columns.model_fields_set or column in present or name in ("user", "item")
        ):
            chosen[name] = column
    return chosen


def _item_fields(columns: ItemColumns, present: Sequence[str], identity: str) -> dict[str, str]:
    """Canonical item field to raw column."""
    chosen = _chosen(columns, present)
    return {c.SOURCE_ID: identity, **{name: column for name, column in chosen.items() if name in ITEM_FIELDS}}


def _first_of_each(frame: pl.LazyFrame, fields: dict[str, str], extra: Sequence[str]) -> pl.LazyFrame:
    """One row an item id, in order of first appearance, with the first non-null value of every field."""
    identity = fields[c.SOURCE_ID]
    others = [name for name in dict.fromkeys([*fields.values(), *extra]) if name != identity]
    present = frame.filter(pl.col(identity).is_not_null() & (pl.col(identity).cast(pl.String) != ""))
    return present.group_by(identity, maintain_order=True).agg(
        pl.col(ROW).first(), *(pl.col(name).drop_nulls().first() for name in others)
    )
