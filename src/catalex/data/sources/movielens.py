"""Source `movielens`: MovieLens 1M and 10M (`.dat`, fields between `::`), 25M, 32M and latest (`.csv`).

Times are in seconds; a user's ratings of one sitting often share one second: ties are frequent and keep file
order.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from catalex.data import columns as c
from catalex.data.sources.base import RawDomain, Source
from catalex.data.sources.catalogue import catalogue
from catalex.data.sources.events import EventColumns, events
from catalex.data.sources.reading import ROW, existing, open_table
from catalex.errors import user_error
from catalex.options import Options

NO_GENRE = "(no genres listed)"
RATINGS = ("userId", "movieId", "rating", "timestamp")
MOVIES = ("movieId", "title", "genres")


class MovieLensOptions(Options):
    """Where the folder is."""

    folder: Path
    """Unpacked archive with `ratings.dat` and `movies.dat`, or `ratings.csv` and `movies.csv`."""
    minimum_rating: float | None = None
    """Keep ratings of at least so many stars; null keeps all: a rating of any height counts as watched."""


class MovieLens(Source):
    """MovieLens 1M, 10M, 25M, 32M and latest."""

    Options = MovieLensOptions

    def __init__(self, options: MovieLensOptions, place: str) -> None:
        self.options, self.place = options, place

    def files(self) -> Sequence[Path]:
        """Ratings, then movies."""
        folder = self.options.folder.expanduser()
        ending = "dat" if (folder / "ratings.dat").exists() else "csv"
        return [existing(folder / f"{name}.{ending}", f"{name} file") for name in ("ratings", "movies")]

    def read(self) -> RawDomain:
        """Ratings as interactions; movies with title (year included) and genres as categories."""
        ratings, movies = self.files()
        if ratings.suffix == ".csv":
            events_frame, movies_frame = open_table([ratings], RATINGS), open_table([movies], MOVIES)
        else:
            events_frame, movies_frame = _double_colon(ratings, RATINGS), _movies_dat(movies)
        columns = EventColumns("userId", "movieId", "timestamp", rating="rating")
        genres = pl.when(pl.col("genres") != NO_GENRE).then("genres").alias("genres")
        items = catalogue(
            movies_frame.with_columns(genres),
            {c.SOURCE_ID: "movieId", c.TITLE: "title", c.CATEGORIES: "genres"},
        )
        return RawDomain(items, events(events_frame, columns, minimum_rating=self.options.minimum_rating))


def _double_colon(path: Path, names: Sequence[str]) -> pl.LazyFrame:
    """Lazy rows of an ASCII `.dat` file. The CSV reader knows one-byte separators only: it reads lines."""
    lines = pl.scan_csv(
        path,
        has_header=False,
        separator="\x01",
        quote_char=None,
        new_columns=["line"],
        infer_schema=False,
        row_index_name=ROW,
        row_index_offset=1,
    )
    fields = (
        pl.col("line").str.split_exact("::", len(names) - 1).struct.rename_fields(list(names)).alias("fields")
    )
    return lines.select(ROW, fields).unnest("fields")


def _movies_dat(path: Path) -> pl.LazyFrame:
    """Rows of `movies.dat`: Latin-1 in the 1M release, UTF-8 in 10M."""
    content = path.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split("::")
        if len(fields) != len(MOVIES):
            raise user_error(
                f"a line must have {len(MOVIES)} fields between '::'",
                place=f"{path}, line {number}",
                value=line,
                remedy="download the archive again",
            )
        rows.append((number, *fields))
    return pl.LazyFrame(rows, schema=[ROW, *MOVIES], orient="row")
