"""From a source's lazy tables to integers: users and items become numbers while the files are read.

It takes one streaming pass: strings are replaced by 64 bits of a hash chunk by chunk and never stand in
memory together. Hashes then become codes, which is several times faster than coding the strings. Another 32
bits of a second hash tell whether two strings share their 64: then, which may never happen, the files are
read again and the strings themselves are coded.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow.compute as pc

from catalex.data.columns import ITEM_ID, POSITION, SOURCE_ID, TIMESTAMP
from catalex.data.sources.base import RawDomain, Source
from catalex.data.sources.events import INVALID, USER, explain_invalid
from catalex.data.sources.reading import ROW, collect
from catalex.errors import user_error
from catalex.types import Ints

OnUnknown = Literal["drop", "refuse"]
OnDuplicate = Literal["refuse", "first"]

UNKNOWN = -1
CHECK = "check of "
"""Before the name of a column: 32 bits of its second hash."""


@dataclass(frozen=True)
class Collected:
    """A whole domain in memory, before filtering.

    Attributes:
        items: N rows, in the order of the items table (of `item_id` where the source brings its own).
        events: E rows in file order: `user` (int32, dense), `item_id` (int32, row of `items`), `timestamp`
            (int64) and `position` (int64) where the source has them.
        images: Parquet file with image bytes by `item_id`, when the source ships one.
        warnings: What was left out, one sentence each.
    """

    items: pl.DataFrame
    events: pl.DataFrame
    images: Path | None
    warnings: list[str]


def collect_source(source: Source, unknown_items: OnUnknown, duplicate_items: OnDuplicate) -> Collected:
    """Read a source completely.

    Args:
        source: Where from.
        unknown_items: What to do with interactions whose item is not in the items table.
        duplicate_items: What to do with an item id that appears twice: refuse, or keep its first row.

    Raises:
        CatalexError: For everything that can be wrong with raw files, with place and remedy.
    """
    files = list(source.files())
    raw = source.read()
    warnings: list[str] = []
    items = _items(raw, source, duplicate_items, warnings)
    events, dense = _encoded(raw, items, source)
    if events.height == 0:
        raise user_error(
            "there are no interactions",
            place=files[0],
            remedy="check the file and the row filters of the source",
        )
    lost = events[ITEM_ID] == UNKNOWN
    count = int(lost.sum())
    if count:
        name = _first_unknown(raw, items, source)
        phrase = f"{count:,} of {events.height:,} interactions name items that the items table lacks"
        if unknown_items == "refuse":
            remedy = "add the items, or set unknown_items: drop"
            raise user_error(f"{phrase}, first {name!r}", place=files[0], remedy=remedy)
        if count == events.height:
            raise user_error(
                f"no interaction names an item of the items table; the first names {name!r}",
                place=files[0],
                remedy="check that both tables use the same ids",
            )
        warnings.append(f"dropped {phrase}, first {name!r}")
        events = events.filter(~lost)
    if count or not dense:
        numbered = _by_rank if _has_own_ids(raw) else _by_appearance
        events = events.with_columns(pl.Series(USER, numbered(events[USER].to_numpy())))
    images = raw.images if raw.images is not None and raw.images.is_file() else None
    return Collected(items, events, images, warnings)


def _has_own_ids(raw: RawDomain) -> bool:
    return ITEM_ID in raw.items.collect_schema()


def _items(raw: RawDomain, source: Source, duplicates: OnDuplicate, warnings: list[str]) -> pl.DataFrame:
    place = list(source.files())[-1]
    items = collect(raw.items, source.files())
    key = ITEM_ID if ITEM_ID in items.columns else SOURCE_ID
    row = items.get_column(ROW) if ROW in items.columns else pl.Series(ROW, np.arange(1, items.height + 1))
    if items.height == 0:
        raise user_error("the items table has no rows", place=place, remedy="check the file")
    if items[key].null_count():
        at = row.filter(items[key].is_null())[0]
        raise user_error(
            "the item has no id", place=f"{place}, row {at}", remedy="fill it in or remove the row"
        )
    first = items[key].is_first_distinct()
    if not first.all():
        at, value = row.filter(~first)[0], items[key].filter(~first)[0]
        if duplicates == "refuse" or key == ITEM_ID:
            remedy = "make the ids unique" + (", or set duplicate_items: first" if key == SOURCE_ID else "")
            raise user_error(
                "the item id appears twice", place=f"{place}, row {at}", value=value, remedy=remedy
            )
        warnings.append(
            f"left out {int((~first).sum()):,} repeated rows of the items table, first {value!r} in row {at}"
        )
        items = items.filter(first)
    if key == ITEM_ID:
        items = items.sort(ITEM_ID)
        if items[ITEM_ID][0] != 0 or items[ITEM_ID][-1] != items.height - 1:
            raise user_error(
                "item_id must run from 0 to N-1 without gaps",
                place=place,
                value=f"{items[ITEM_ID][0]} to {items[ITEM_ID][-1]} in {items.height} rows",
                remedy="number the items anew, or use source 'tables' for other ids",
            )
    return items.drop([name for name in (ROW,) if name in items.columns])


def _item_code(raw: RawDomain, items: pl.DataFrame) -> pl.Expr:
    """Row of `items` of each interaction, `UNKNOWN` if there is none."""
    if _has_own_ids(raw):
        known = pl.col(ITEM_ID).is_between(0, items.height - 1)
        return pl.when(known).then(pl.col(ITEM_ID)).otherwise(UNKNOWN).cast(pl.Int32).alias(ITEM_ID)
    code = pl.col(SOURCE_ID).cast(pl.Enum(items[SOURCE_ID]), strict=False).to_physical().cast(pl.Int32)
    return code.fill_null(UNKNOWN).alias(ITEM_ID)


def _encoded(raw: RawDomain, items: pl.DataFrame, source: Source) -> tuple[pl.DataFrame, bool]:
    """Users as any integers and items as rows of `items`, with what orders the events; and whether users
    stand numbered 0.. by first appearance already."""
    named = [USER] if not raw.interactions.collect_schema()[USER].is_integer() else []
    named += [] if _has_own_ids(raw) else [SOURCE_ID]
    hashed = [half for name in named for half in _hashes(name)]
    events = _collected(raw, source, *(() if USER in named else (pl.col(USER),)), *hashed, *_own(raw, items))
    halves = {name: (events[name], events[CHECK + name]) for name in named}
    known = items.select(_hashes(SOURCE_ID)) if SOURCE_ID in named else None
    tasks: dict[str, Callable[[], Ints | None]] = {}
    if USER in halves:
        tasks[USER] = partial(_codes, *halves[USER])
    if known is not None:
        tasks[ITEM_ID] = partial(_places, *halves[SOURCE_ID], known[SOURCE_ID], known[CHECK + SOURCE_ID])
    with ThreadPoolExecutor(2) as pool:  # Arrow codes on one core
        coded = dict(zip(tasks, pool.map(lambda task: task(), tasks.values()), strict=True))
    if any(codes is None for codes in coded.values()):
        user = pl.col(USER).cast(pl.Categorical(pl.Categories.random())).to_physical()
        user = user if USER in named else pl.col(USER)
        return _collected(raw, source, user, _item_code(raw, items)), False
    columns = [pl.Series(name, codes) for name, codes in coded.items()]
    kept = events.drop([*halves, *(CHECK + name for name in named)]).with_columns(columns)
    return kept.select(USER, ITEM_ID, pl.exclude(USER, ITEM_ID)), USER in named


def _collected(raw: RawDomain, source: Source, *columns: pl.Expr) -> pl.DataFrame:
    """These columns of the events, and what orders them."""
    schema = raw.interactions.collect_schema()
    order = [name for name in (TIMESTAMP, POSITION) if name in schema]
    marked = INVALID in schema
    frame = raw.interactions.select(*columns, *order, *([INVALID] if marked else []))
    events = collect(frame, source.files())
    if marked:
        if events[INVALID].any():
            raise explain_invalid(raw.interactions, source.files())
        events = events.drop(INVALID)
    return events


def _own(raw: RawDomain, items: pl.DataFrame) -> list[pl.Expr]:
    """The items' codes where the source brings them."""
    return [_item_code(raw, items)] if _has_own_ids(raw) else []


def _hashes(name: str) -> tuple[pl.Expr, pl.Expr]:
    """64 bits of a column of strings, and 32 of another hash of them."""
    text = pl.col(name).cast(pl.String)
    return text.hash(1), (text.hash(2) % 2**32).cast(pl.UInt32).alias(CHECK + name)


def _codes(hashes: pl.Series, checks: pl.Series) -> Ints | None:
    """``(E,)`` a code for each distinct hash, by first appearance; None if different checks share a hash."""
    found: Any = pc.dictionary_encode(hashes.to_arrow())
    codes: Ints = found.indices.to_numpy()
    own = checks.to_numpy()
    expected = np.empty(len(found.dictionary), np.uint32)
    expected[codes] = own
    return codes if np.array_equal(expected[codes], own) else None


def _places(hashes: pl.Series, checks: pl.Series, known: pl.Series, known_checks: pl.Series) -> Ints | None:
    """``(E,)`` the row of each hash among the known ones, `UNKNOWN` if there is none; None if two known ones
    are equal, or one that was found has another check."""
    if known.n_unique() < len(known):
        return None
    found: Any = pc.index_in(hashes.to_arrow(), value_set=known.to_arrow())
    places: Ints = found.fill_null(UNKNOWN).to_numpy()
    # UNKNOWN reads the last check, which does not matter: it is left out of the comparison
    same = known_checks.to_numpy()[places] == checks.to_numpy()
    return places if bool((same | (places == UNKNOWN)).all()) else None


def _first_unknown(raw: RawDomain, items: pl.DataFrame, source: Source) -> object:
    lost = raw.interactions.filter(_item_code(raw, items) == UNKNOWN)
    return collect(lost.select(ITEM_ID if _has_own_ids(raw) else SOURCE_ID).head(1), source.files()).item()


def _by_appearance(codes: Ints) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """Codes ``(E,)`` renumbered 0.. in order of first appearance.

    >>> _by_appearance(np.array([7, 3, 7, 9])).tolist()
    [0, 1, 0, 2]
    """
    codes = _compact(codes)
    first = np.full(int(codes.max()) + 1, -1, np.int64)
    first[codes[::-1]] = np.arange(
        len(codes) - 1, -1, -1
    )  # the last write wins: the earliest event of each code
    present = np.flatnonzero(first >= 0)
    rank = np.empty(len(first), np.int32)
    rank[present[np.argsort(first[present])]] = np.arange(len(present), dtype=np.int32)
    return rank[codes]


def _by_rank(codes: Ints) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """Codes ``(E,)`` renumbered 0.. in their own order.

    >>> _by_rank(np.array([7, 3, 7, 9])).tolist()
    [1, 0, 1, 2]
    """
    codes = _compact(codes)
    present = np.zeros(int(codes.max()) + 1, np.bool_)
    present[codes] = True
    rank = np.cumsum(present, dtype=np.int32) - 1
    return rank[codes].astype(np.int32)


def _compact(codes: Ints) -> Ints:
    """Codes that are small enough to index an array, in the same order."""
    low, high = int(codes.min()), int(codes.max())
    if high - low <= 4 * len(codes) + 2**20:
        return codes if low == 0 else codes - low
    return np.unique(codes, return_inverse=True)[1].astype(np.int64)
