"""Source `recbole`: RecBole's atomic files, tab-separated with typed headers (``user_id:token``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl
from pydantic import Field

from catalex.data import columns as c
from catalex.data.sources.amazon2023 import distinct_ids
from catalex.data.sources.base import RawDomain, Source
from catalex.data.sources.catalogue import catalogue
from catalex.data.sources.events import EventColumns, events
from catalex.data.sources.reading import ROW, damaged, existing, require, text_lines
from catalex.options import Options

GUESSES = {
    c.TITLE: ("title", "movie_title", "item_name", "name"),
    c.BRAND: ("brand", "store"),
    c.CATEGORIES: ("categories", "category", "genre", "genres", "class"),
    c.DESCRIPTION: ("description",),
    c.IMAGE: ("image", "img_url"),
}
"""Field names that published atomic files use for the canonical columns."""


class RecBoleOptions(Options):
    """Files and field names."""

    interactions: Path
    """The `.inter` file."""
    items: Path | None = None
    """The `.item` file; null: items have ids only."""
    user: str = "user_id"
    """USER_ID_FIELD of RecBole, with its default."""
    item: str = "item_id"
    """ITEM_ID_FIELD of RecBole, with its default."""
    timestamp: str | None = "timestamp"
    """TIME_FIELD of RecBole, with its default; null when the order of lines is the order in time."""
    rating: str = "rating"
    """RATING_FIELD of RecBole, with its default; only read when `minimum_rating` is set."""
    minimum_rating: float | None = None
    """Keep interactions rated at least so; null keeps all."""
    fields: dict[str, str] = Field(default_factory=dict)
    """Canonical item column to field, where names differ from the usual ones: ``{title: movie_title}``."""
    separator: str = " "
    """Between the members of a category sequence; RecBole's `seq_separator`, with its default."""


class RecBole(Source):
    """RecBole atomic files."""

    Options = RecBoleOptions

    def __init__(self, options: RecBoleOptions, place: str) -> None:
        self.options, self.place = options, place

    def files(self) -> Sequence[Path]:
        """Interactions, then items."""
        found = [existing(self.options.interactions.expanduser(), "interactions file")]
        return (
            [*found, existing(self.options.items.expanduser(), "items file")] if self.options.items else found
        )

    def read(self) -> RawDomain:
        """Both atomic files."""
        options, files = self.options, self.files()
        rating = options.rating if options.minimum_rating is not None else None
        columns = EventColumns(options.user, options.item, options.timestamp, rating=rating)
        frame, present = _atomic(files[0])
        require(files[0], columns.named, present)
        interactions = events(frame, columns, minimum_rating=options.minimum_rating)
        if options.items is None:
            return RawDomain(distinct_ids(frame, options.item), interactions)
        table, present = _atomic(files[1])
        fields = {c.SOURCE_ID: options.item}
        for name, guesses in GUESSES.items():
            usual = next((guess for guess in guesses if guess in present), None)
            if usual is not None:
                fields[name] = usual
        fields.update(options.fields)
        require(files[1], list(fields.values()), present)
        return RawDomain(catalogue(table, fields, separator=options.separator), interactions)


def _atomic(path: Path) -> tuple[pl.LazyFrame, list[str]]:
    """Lazy rows of an atomic file with plain field names, and those names."""
    try:
        with text_lines(path) as lines:
            header = lines.readline().rstrip("\r\n").removeprefix("\ufeff").split("\t")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise damaged(error, [path]) from None
    names = [field.split(":")[0] for field in header]
    frame = pl.scan_csv(
        path,
        separator="\t",
        quote_char=None,
        infer_schema=False,
        new_columns=names,
        row_index_name=ROW,
        row_index_offset=1,
    )
    return frame, names
