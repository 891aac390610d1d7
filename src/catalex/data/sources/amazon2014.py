"""Source `amazon2014`: Amazon reviews of 2014 (McAuley et al. 2015) and 2018 (Ni et al. 2019).

Reviews are JSON lines. The metadata of 2014 are not: each line is the text of a Python dict. It is read with
`ast.literal_eval`, which builds constants and runs nothing; lines of JSON (2018) are read as JSON.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from catalex.data import columns as c
from catalex.data.sources.amazon2023 import distinct_ids
from catalex.data.sources.base import RawDomain, Source
from catalex.data.sources.catalogue import plain
from catalex.data.sources.events import EventColumns, events
from catalex.data.sources.reading import ROW, damaged, matching, open_table, text_lines
from catalex.errors import user_error
from catalex.options import Options
from catalex.progress import Track

BATCH = 50_000
"""Metadata lines turned into a table at a time."""

SCHEMA = pl.Schema(
    [
        (ROW, pl.UInt32()),
        (c.SOURCE_ID, pl.String()),
        (c.TITLE, pl.String()),
        (c.BRAND, pl.String()),
        (c.CATEGORIES, pl.List(pl.String)),
        (c.DESCRIPTION, pl.String()),
        (c.IMAGE, pl.String()),
    ]
)


class Amazon2014Options(Options):
    """Files of one category."""

    reviews: str
    """Reviews, e.g. `reviews_Beauty_5.json.gz`."""
    metadata: str | None = None
    """Metadata, e.g. `meta_Beauty.json.gz`; null: items have ids only."""
    minimum_rating: float | None = None
    """Keep reviews with at least so many stars; null keeps all, as S3-Rec and TIGER do."""


class Amazon2014(Source):
    """Amazon reviews 2014 and 2018."""

    Options = Amazon2014Options

    def __init__(self, options: Amazon2014Options, place: str) -> None:
        self.options, self.place = options, place

    def files(self) -> Sequence[Path]:
        """Reviews, then metadata."""
        found = matching(self.options.reviews, "reviews file")
        return [*found, *matching(self.options.metadata, "metadata file")] if self.options.metadata else found

    def read(self) -> RawDomain:
        """Reviews lazily; the metadata at once, since Python has to read every line."""
        rating = "overall" if self.options.minimum_rating is not None else None
        columns = EventColumns("reviewerID", "asin", "unixReviewTime", rating=rating)
        frame = open_table(matching(self.options.reviews, "reviews file"), columns.named)
        interactions = events(frame, columns, minimum_rating=self.options.minimum_rating)
        if self.options.metadata is None:
            return RawDomain(distinct_ids(frame, "asin"), interactions)
        paths = matching(self.options.metadata, "metadata file")
        tables = [table for path in paths for table in _metadata(path)]
        items = pl.concat(tables) if tables else SCHEMA.to_frame()
        return RawDomain(items.lazy(), interactions)


def _metadata(path: Path) -> Iterator[pl.DataFrame]:
    rows: list[dict[str, Any]] = []
    try:
        with text_lines(path) as lines, Track(f"read {path.name}", total=None, unit="lines") as track:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    rows.append({ROW: number, **item_of(literal(line, path, number), path, number)})
                if len(rows) == BATCH:
                    yield pl.DataFrame(rows, schema=SCHEMA)
                    rows = []
                track.advance()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise damaged(error, [path]) from None
    yield pl.DataFrame(rows, schema=SCHEMA)


def literal(line: str, path: Path, number: int) -> dict[str, Any]:
    """One metadata line, JSON or a Python literal, as a dict; never evaluated as code.

    Raises:
        CatalexError: When it is neither, or no dict.
    """
    place = f"{path}, line {number}"
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        try:
            record = ast.literal_eval(line.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            remedy = "repair or remove the line"
            raise user_error(
                "neither JSON nor a Python literal", place=place, value=line.strip(), remedy=remedy
            ) from None
    if not isinstance(record, dict):
        remedy = "repair or remove the line"
        raise user_error("a metadata line must be a dict", place=place, value=line.strip(), remedy=remedy)
    return record


def item_of(record: dict[str, Any], path: Path, number: int) -> dict[str, Any]:
    """Fields of one item, whichever release it is from."""
    if not record.get("asin"):
        remedy = "check that this is a metadata file"
        raise user_error(
            "the line has no 'asin'", place=f"{path}, line {number}", allowed=list(record), remedy=remedy
        )
    paths = record.get("categories") or record.get("category") or []
    first = paths[0] if paths and isinstance(paths[0], list) else paths
    images = record.get("imageURLHighRes") or record.get("imageURL") or record.get("imUrl")
    return {
        c.SOURCE_ID: str(record["asin"]),
        c.TITLE: _text(record.get("title")),
        c.BRAND: _text(record.get("brand")),
        c.CATEGORIES: [label for label in (_text(part) for part in first) if label],
        c.DESCRIPTION: _text([record.get("description"), record.get("feature")]),
        c.IMAGE: (images[0] if images else None) if isinstance(images, list) else images,
    }


def _text(value: Any) -> str | None:
    """Plain text of a string or of (nested) lists of strings; null when empty."""
    if isinstance(value, list):
        return " ".join(part for part in map(_text, value) if part) or None
    return (plain(str(value)) or None) if value is not None else None
