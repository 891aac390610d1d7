"""Source `amazon2023`: Amazon Reviews 2023 (McAuley Lab), reviews or bare ratings, and product metadata.

An item is a `parent_asin` (all colours and sizes of one product). Times are in milliseconds. Average rating
and number of ratings stand in the metadata but are left out: they are computed from all reviews, test
interactions included.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from catalex.data import columns as c
from catalex.data.sources.base import RawDomain, Source
from catalex.data.sources.catalogue import catalogue
from catalex.data.sources.events import EventColumns, events
from catalex.data.sources.reading import ROW, columns_of, matching, open_table
from catalex.options import Options

ITEM = "parent_asin"
IMAGES = "images"
SIZES = ("large", "hi_res", "thumb")
"""Sizes of a picture in the metadata."""


class Amazon2023Options(Options):
    """Files of one category."""

    reviews: str
    """Reviews (`Video_Games.jsonl.gz`) or bare ratings (`Video_Games.csv`, with a header)."""
    metadata: str | None = None
    """Metadata (`meta_Video_Games.jsonl.gz`); null: items have ids only."""
    minimum_rating: float | None = None
    """Keep reviews with at least so many stars; null keeps all, as the generative papers do."""


class Amazon2023(Source):
    """Amazon Reviews 2023."""

    Options = Amazon2023Options

    def __init__(self, options: Amazon2023Options, place: str) -> None:
        self.options, self.place = options, place

    def files(self) -> Sequence[Path]:
        """Reviews, then metadata."""
        found = matching(self.options.reviews, "reviews file")
        return [*found, *matching(self.options.metadata, "metadata file")] if self.options.metadata else found

    def read(self) -> RawDomain:
        """Reviews in file order; metadata with title, store, categories, description, features, one image."""
        rating = "rating" if self.options.minimum_rating is not None else None
        columns = EventColumns("user_id", ITEM, "timestamp", rating=rating)
        frame = open_table(matching(self.options.reviews, "reviews file"), columns.named)
        interactions = events(
            frame, columns, time_format="milliseconds", minimum_rating=self.options.minimum_rating
        )
        if self.options.metadata is None:
            return RawDomain(distinct_ids(frame, ITEM), interactions)
        return RawDomain(self._items(matching(self.options.metadata, "metadata file")), interactions)

    def _items(self, paths: Sequence[Path]) -> pl.LazyFrame:
        optional = [
            "title",
            "store",
            "categories",
            "main_category",
            "description",
            "features",
            IMAGES,
            "price",
            "details",
        ]
        frame = open_table(paths, [ITEM], optional)
        present = [name for name in optional if name in columns_of(paths[0])]
        fields = {c.SOURCE_ID: ITEM}
        fields.update({name: name for name in ("title", "categories", "description") if name in present})
        if "store" in present:
            fields[c.BRAND] = "store"
        if "features" in present:
            frame = frame.with_columns(_joined(present).alias("description"))
            fields[c.DESCRIPTION] = "description"
        if {"categories", "main_category"} <= set(present):
            empty = pl.col("categories").is_null() | (pl.col("categories") == "[]")
            listed = (
                pl.concat_list("main_category")
                .list.drop_nulls()
                .map_batches(_as_json, return_dtype=pl.String)
            )
            frame = frame.with_columns(
                pl.when(empty).then(listed).otherwise("categories").alias("categories")
            )
        if IMAGES in present:
            frame = frame.with_columns(pl.col(IMAGES).map_batches(_images, return_dtype=pl.String))
            fields[c.IMAGE] = IMAGES
        extra = [name for name in ("main_category", "price", "details") if name in present]
        return catalogue(frame, fields, extra=extra, clean=True)


def distinct_ids(frame: pl.LazyFrame, item: str) -> pl.LazyFrame:
    """An items table with ids only, in order of first appearance among the interactions."""
    found = frame.select(pl.col(item).cast(pl.String).alias(c.SOURCE_ID), ROW).drop_nulls(c.SOURCE_ID)
    return found.group_by(c.SOURCE_ID).agg(pl.col(ROW).min()).sort(ROW)


def _joined(present: Sequence[str]) -> pl.Expr:
    """Description paragraphs followed by the features, both JSON lists of strings, as one JSON list."""
    parts = [name for name in ("description", "features") if name in present]

    def join(rows: pl.Series) -> pl.Series:
        return pl.Series(rows.name, [json.dumps(_strings(row.values())) for row in rows], dtype=pl.String)

    return pl.struct(parts).map_batches(join, return_dtype=pl.String)


def _strings(cells: object) -> list[str]:
    found: list[str] = []
    for cell in cells if isinstance(cells, (list, type({}.values()))) else []:
        value = json.loads(cell) if isinstance(cell, str) and cell.startswith("[") else cell
        found.extend(str(part) for part in (value if isinstance(value, list) else [value]) if part)
    return found


def _as_json(rows: pl.Series) -> pl.Series:
    return pl.Series(
        rows.name, [json.dumps(row.to_list()) if row is not None else None for row in rows], dtype=pl.String
    )


def _images(cells: pl.Series) -> pl.Series:
    return pl.Series(cells.name, [image_url(cell) for cell in cells], dtype=pl.String)


def image_url(cell: str | None) -> str | None:
    """The first large picture of a product, else the last one there is in any other size.

    >>> image_url('[{"thumb": "t.jpg", "large": null}, {"thumb": "u.jpg", "large": "l.jpg"}]')
    'l.jpg'
    """
    pictures = json.loads(cell) if cell else []
    if isinstance(pictures, dict):  # the Parquet export keeps one list a size instead of one object a picture
        columns = {size: pictures.get(size) or [] for size in SIZES}
        count = max(map(len, columns.values()), default=0)
        pictures = [{s: v[i] if i < len(v) else None for s, v in columns.items()} for i in range(count)]
    large = [picture["large"] for picture in pictures if picture.get("large")]
    if large:
        return str(large[0])
    others = [picture[size] for picture in pictures for size in reversed(SIZES) if picture.get(size)]
    return str(others[-1]) if others else None
