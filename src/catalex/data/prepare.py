"""From raw files to a canonical domain folder: read, filter, order, split, write.

The order of steps is fixed: unknown items, duplicates, consecutive repeats, k-core, latest n, split. Times
that are equal keep the order of the file. The same input gives the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from catalex.artifacts import atomic_path, hash_file, read_parquet, write_json, write_parquet
from catalex.data import columns as c
from catalex.data.filtering import k_core, latest, one_of_each_pair, without_repeats
from catalex.data.histories import Histories, SplitHistories
from catalex.data.sources import make_source
from catalex.data.sources.base import Source
from catalex.data.sources.collecting import Collected, collect_source
from catalex.data.sources.events import USER
from catalex.data.sources.reading import columns_of
from catalex.data.splits import SHORTEST, Parts, global_time, leave_one_out
from catalex.data.statistics import text_coverage
from catalex.errors import user_error
from catalex.options import Options
from catalex.progress import say
from catalex.types import Bools, Ints

CANONICAL = "canonical"
RAW_CORE = 5
"""k of the k-core for raw sources: 5, as in S3-Rec, TIGER, LETTER and UTGRec."""
DEALT_FROM = 2**17
"""Rows from which sorting deals them out first."""
PART_BITS = 10
"""Of a thousand parts of 100 million rows each fits into a processor's cache."""
TAKEN_AT_ONCE = 2**20
"""Rows that a thread gathers in one go."""
IMAGES_A_GROUP = 256
"""Images of a Parquet row group: what one random access reads, a few MB."""


class PrepareOptions(Options):
    """How one domain is made."""

    source: str
    """Name in the table of data sources."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of that source: files and columns."""
    min_interactions: int | None = Field(default=None, ge=0)
    """k of the k-core over users and items; 0 or 1 is off. Null: 5 for raw sources, 0 for canonical ones."""
    min_user_interactions: int | None = Field(default=None, ge=0)
    """Another k for users."""
    min_item_interactions: int | None = Field(default=None, ge=0)
    """Another k for items."""
    duplicates: Literal["keep", "first", "last"] = "keep"
    """What stays of several interactions of a user with one item."""
    repeats: Literal["keep", "drop"] = "keep"
    """Whether an item right after itself in a history stays."""
    max_history: int | None = Field(default=None, ge=SHORTEST)
    """Keep the latest n interactions of a user, evaluation included; null keeps all."""
    split: Literal["leave-one-out", "global-time"] = "leave-one-out"
    """See `splits`. Leave-one-out is what the generative papers report."""
    valid_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of interactions for validation in a global-time split."""
    test_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of interactions for test in a global-time split."""
    unknown_items: Literal["refuse", "drop"] = "refuse"
    """What happens to interactions whose item is not in the items table."""
    duplicate_items: Literal["refuse", "first"] = "refuse"
    """What happens to an item id that appears twice in the items table."""

    @property
    def cores(self) -> tuple[int, int]:
        """Minimum for users and for items, defaults filled in."""
        both = self.min_interactions
        if both is None:
            both = 0 if self.source == CANONICAL else RAW_CORE
        user, item = self.min_user_interactions, self.min_item_interactions
        return both if user is None else user, both if item is None else item


def input_hashes(options: PrepareOptions, name: str = "") -> dict[str, str]:
    """SHA-256 of every raw file of the domain `name` (for messages), by its path.

    Raises:
        CatalexError: When a file is missing or empty.
    """
    return {str(path): hash_file(path) for path in _source(options, name).files()}


def prepare(name: str, options: PrepareOptions, folder: Path) -> dict[str, Any]:
    """Write the canonical domain folder of `name` and return its manifest. See docs/data.md for the layout.

    Raises:
        CatalexError: For bad raw files, for a k-core that leaves nothing, for a domain too small to split.
    """
    if options.valid_fraction + options.test_fraction >= 1:
        raise user_error(
            "valid_fraction and test_fraction leave nothing to train on", place=name, remedy="lower them"
        )
    source = _source(options, name)
    say(f"prepare {name}: read {', '.join(path.name for path in source.files())}")
    found = collect_source(source, options.unknown_items, options.duplicate_items)
    timed = c.TIMESTAMP in found.events.columns
    if options.split == "global-time" and not timed:
        raise user_error(
            "a global-time split needs timestamps, and the source has none",
            place=name,
            remedy="use split: leave-one-out, or name the timestamp column",
        )
    users, items, times = _ordered(found)
    users, items, times = _filtered(name, options, users, items, times)
    kept_items = _catalogue_rows(options, items, found.items.height)
    users, items = _renumbered(users), _renumbered(items, kept_items)
    parts, split = _split(name, options, users, times)
    lengths = np.bincount(users)
    warnings = [*found.warnings, *_time_warnings(times)]
    (folder / c.MANIFEST_FILE).unlink(missing_ok=True)  # a folder without a manifest is not prepared
    images = _write_items(folder, found, kept_items)
    histories = Histories(np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]), items.astype(np.int64))
    with ThreadPoolExecutor(1) as pool:  # compressing and hashing both leave the interpreter alone
        written = pool.submit(_write_interactions, folder / c.INTERACTIONS_FILE, users, items, times, parts)
        split_id = SplitHistories(histories, parts.astype(np.int64)).split_id
        written.result()
    outputs = [c.ITEMS_FILE, c.INTERACTIONS_FILE, *([c.IMAGES_FILE] if images else [])]
    table = read_parquet(folder / c.ITEMS_FILE)
    manifest = {
        "name": name,
        "source": options.source,
        "options": options.model_dump(mode="json"),
        "min_interactions": dict(zip(("users", "items"), options.cores, strict=True)),
        "counts": {"users": len(lengths), "items": len(kept_items), "interactions": len(users)},
        "mean_length": round(float(lengths.mean()), 4),
        "median_length": float(np.median(lengths)),
        "density": float(len(users) / (len(lengths) * len(kept_items))),
        "sparsity": float(1 - len(users) / (len(lengths) * len(kept_items))),
        "split": split,
        "split_id": split_id,
        "has_timestamp": timed,
        "images": images,
        "coverage": text_coverage(table),
        "files": {file: hash_file(folder / file) for file in outputs},
        "warnings": warnings,
    }
    write_json(folder / c.MANIFEST_FILE, manifest)
    for warning in warnings:
        say(f"prepare {name}: {warning}")
    say(f"prepare {name}: {len(lengths):,} users, {len(kept_items):,} items, {len(users):,} interactions")
    return manifest


def _source(options: PrepareOptions, name: str) -> Source:
    place = f"domains.{name}.options" if name else f"{options.source}.options"
    return make_source(options.source, options.options, place)


def _ordered(found: Collected) -> tuple[Ints, Ints, Ints | None]:
    """Users, items and times, sorted by user, then time, then position, then place in the file."""
    by = [name for name in (USER, c.TIMESTAMP, c.POSITION) if name in found.events.columns]
    columns = [found.events[name].to_numpy() for name in by]
    order = sort_order(columns)
    users = np.repeat(np.arange(int(columns[0].max()) + 1, dtype=columns[0].dtype), np.bincount(columns[0]))
    items = _taken(found.events[c.ITEM_ID].to_numpy(), order)
    return users, items, _taken(columns[1], order) if c.TIMESTAMP in by else None


def sort_order(columns: Sequence[Ints]) -> Ints:
    """Row numbers ``(E,)`` that sort by the first column, then the second, ...; equal rows keep their order.

    Many rows are dealt out first, by the leading bits of the first column, so that each part is sorted in the
    processor's cache and the parts by as many threads as there are cores.
    """
    first = columns[0]
    if len(first) < DEALT_FROM:
        return np.lexsort(columns[::-1]).astype(np.int64)
    threads = os.cpu_count() or 1
    low = int(first.min())
    shift = max((int(first.max()) - low).bit_length() - PART_BITS, 0)
    bounds = [len(first) * i // threads for i in range(threads + 1)]

    def deal(begin: int, end: int) -> tuple[Ints, Ints]:
        part = ((first[begin:end].astype(np.int64) - low) >> shift).astype(np.uint16)
        rows = np.argsort(part, kind="stable")  # of 16 bits NumPy makes a radix sort
        rows += begin
        return rows, np.concatenate([[0], np.cumsum(np.bincount(part, minlength=2**PART_BITS))])

    order = np.empty(len(first), np.int64)
    with ThreadPoolExecutor(threads) as pool:
        dealt = list(pool.map(deal, bounds[:-1], bounds[1:]))
        starts = np.sum([ends for _, ends in dealt], axis=0)

        def sort(part: int) -> None:
            rows = np.concatenate([rows[ends[part] : ends[part + 1]] for rows, ends in dealt])
            values = [np.take(column, rows, mode="clip") for column in columns]
            order[starts[part] : starts[part + 1]] = np.take(rows, _stable_order(values), mode="clip")

        list(pool.map(sort, range(2**PART_BITS)))
    return order


def _taken(values: Ints, rows: Ints) -> Ints:
    """``values[rows]`` by as many threads as there are cores: waiting for memory is all it does, and NumPy
    leaves the interpreter alone meanwhile."""
    found = np.empty(len(rows), values.dtype)

    def take(start: int) -> None:
        part = slice(start, start + TAKEN_AT_ONCE)
        np.take(values, rows[part], out=found[part], mode="clip")  # "raise" would copy once more

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(take, range(0, len(rows), TAKEN_AT_ONCE)))
    return found


def _stable_order(columns: Sequence[Ints]) -> Ints:
    """``np.lexsort`` of the columns reversed, several times faster where the values of a row and its number
    fit into one integer: sorting integers themselves is what processors have vector instructions for."""
    count = len(columns[0])
    if not count:
        return np.zeros(0, np.int64)
    lows = [int(column.min()) for column in columns]
    widths = [(int(column.max()) - low).bit_length() for column, low in zip(columns, lows, strict=True)]
    bits = count.bit_length()
    if sum(widths) + bits > 63:
        return np.lexsort(columns[::-1])
    key = np.zeros(count, np.int64)
    for column, low, width in zip(columns, lows, widths, strict=True):
        key <<= width
        key |= column.astype(np.int64) - low
    key <<= bits
    key |= np.arange(count)
    key.sort()
    key &= (1 << bits) - 1
    return key


def _filtered(
    name: str, options: PrepareOptions, users: Ints, items: Ints, times: Ints | None
) -> tuple[Ints, Ints, Ints | None]:
    """The three arrays after all filters."""

    def take(keep: Bools) -> None:
        nonlocal users, items, times
        if not keep.all():
            rows = np.flatnonzero(keep)
            users, items = _taken(users, rows), _taken(items, rows)
            times = None if times is None else _taken(times, rows)

    if options.duplicates != "keep":
        take(one_of_each_pair(users, items, options.duplicates))
    if options.repeats == "drop":
        take(without_repeats(users, items))
    user_minimum, item_minimum = options.cores
    if max(user_minimum, item_minimum) > 1:
        keep = k_core(users, items, user_minimum, item_minimum)
        if not keep.any():
            before = f"{_distinct(users):,} users, {_distinct(items):,} items, {len(users):,} interactions"
            raise user_error(
                f"the k-core filter leaves nothing (k is {user_minimum} for users, {item_minimum} for items)",
                place=name,
                value=before,
                remedy="lower min_interactions",
            )
        take(keep)
    if options.max_history is not None:
        take(latest(users, options.max_history))
    return users, items, times


def _distinct(ids: Ints) -> int:
    return int(np.count_nonzero(np.bincount(ids)))


def _catalogue_rows(options: PrepareOptions, items: Ints, count: int) -> Ints:
    """Rows of the items table that stay: those of the k-core, or all if items have no minimum."""
    return np.arange(count) if options.cores[1] <= 1 else np.flatnonzero(np.bincount(items))


def _renumbered(ids: Ints, kept: Ints | None = None) -> Ints:
    """Ids ``(E,)`` int32, renumbered 0.. among those `kept` (default: all that occur), order unchanged."""
    present = np.zeros(int(ids.max()) + 1 if kept is None else int(kept[-1]) + 1, np.bool_)
    present[ids if kept is None else kept] = True
    rank = np.cumsum(present, dtype=np.int32) - np.int32(1)
    renumbered: Ints = rank[ids]
    return renumbered


def _split(
    name: str, options: PrepareOptions, users: Ints, times: Ints | None
) -> tuple[Parts, dict[str, Any]]:
    """Parts ``(E,)`` and their description for the manifest."""
    if options.split == "leave-one-out" or times is None:
        parts, description = leave_one_out(np.bincount(users), name), {}
    else:
        parts, first, second = global_time(times, options.valid_fraction, options.test_fraction, name)
        description = {"cuts": [first, second], "fractions": [options.valid_fraction, options.test_fraction]}
    counts = np.bincount(parts, minlength=3)
    sizes = {
        part: int(counts[value]) for part, value in (("train", c.TRAIN), ("valid", c.VALID), ("test", c.TEST))
    }
    return parts, {"kind": options.split, "interactions": sizes, **description}


def _time_warnings(times: Ints | None) -> list[str]:
    """A hint when all times lie in the 1970s: seconds that were read as milliseconds look like that."""
    if times is not None and len(times) and int(times.max()) < 315_532_800:
        return ["all timestamps lie before 1980; were seconds read as milliseconds?"]
    return []


def _write_interactions(path: Path, users: Ints, items: Ints, times: Ints | None, parts: Parts) -> None:
    """Write `columns.INTERACTIONS_SCHEMA`, positions counted anew from 0."""
    lengths = np.bincount(users)
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)[:-1]])
    if len(users) < 2**31:
        starts = starts.astype(np.int32)  # half the memory to go through
    position = np.arange(len(users), dtype=starts.dtype)
    position -= np.repeat(starts, lengths)
    position = position.astype(np.int32, copy=False)
    arrays: list[Any] = [
        pa.array(users, pa.int32()),
        pa.array(items, pa.int32()),
        pa.array(position, pa.int32()),
        pa.nulls(len(users), pa.int64()) if times is None else pa.array(times, pa.int64()),
        pa.array(parts, pa.int8()),
    ]
    table = pa.Table.from_arrays(arrays, schema=c.INTERACTIONS_SCHEMA)
    write_parquet(path, table, differences=(c.USER_ID, c.POSITION, c.TIMESTAMP))


def _write_items(folder: Path, found: Collected, kept: Ints) -> int:
    """Write items and their images; returns the number of images.

    Images that were fetched into the folder later stay as long as the items are the same, byte by byte.
    """
    path, images = folder / c.ITEMS_FILE, folder / c.IMAGES_FILE
    before = hash_file(path) if path.is_file() else None
    write_parquet(path, _items_table(found.items, kept, found.images is not None))
    if found.images is not None:
        return _copy_images(found.images, images, kept)
    if before != hash_file(path):
        images.unlink(missing_ok=True)
    return 0


def _items_table(table: pl.DataFrame, kept: Ints, with_images: bool) -> pa.Table:
    """The kept items with dense ids and all canonical columns."""
    table = table[kept]
    ids = pl.Series(c.ITEM_ID, np.arange(len(kept)), dtype=pl.Int32)
    table = table.with_columns(ids)
    if with_images and c.IMAGE in table.columns:  # references follow the new ids
        image = pl.col(c.IMAGE)
        inside = image.str.starts_with(f"{c.IMAGES_FILE}#")
        moved = pl.lit(f"{c.IMAGES_FILE}#") + pl.col(c.ITEM_ID).cast(pl.String)
        table = table.with_columns(pl.when(inside).then(moved).otherwise(image).alias(c.IMAGE))
    labels = pl.List(pl.String)
    if c.CATEGORIES in table.columns:
        table = table.with_columns(pl.col(c.CATEGORIES).cast(labels).fill_null(pl.lit([], labels)))
    else:
        table = table.with_columns(pl.lit([], labels).alias(c.CATEGORIES))
    arrays: list[Any] = []
    for field in c.ITEMS_SCHEMA:
        present = field.name in table.columns
        array: Any = table[field.name].to_arrow() if present else pa.nulls(len(kept), field.type)
        arrays.append(array.cast(field.type))
    return pa.Table.from_arrays(arrays, schema=c.ITEMS_SCHEMA)


def _copy_images(source: Path, target: Path, kept: Ints) -> int:
    """Write `item_id` and `jpeg` (in the source perhaps `image`) of the kept items; returns their number."""
    present = columns_of(source)
    column = next((name for name in ("jpeg", c.IMAGE) if name in present), None)
    if column is None or c.ITEM_ID not in present:
        raise user_error(
            "the images file needs columns 'item_id' and 'jpeg' or 'image'",
            place=source,
            allowed=f"the file has {', '.join(present)}",
            remedy="rename its columns",
        )
    count = 0
    fields: Any = [(c.ITEM_ID, pa.int32()), ("jpeg", pa.binary())]
    schema = pa.schema(fields)
    with atomic_path(target) as temporary, pq.ParquetWriter(temporary, schema, compression="none") as writer:
        for batch in pq.ParquetFile(source).iter_batches(IMAGES_A_GROUP, columns=[c.ITEM_ID, column]):
            ids = batch.column(c.ITEM_ID).to_numpy(zero_copy_only=False).astype(np.int64)
            rows = np.minimum(np.searchsorted(kept, ids), len(kept) - 1)
            mask = kept[rows] == ids
            pictures: Any = batch.column(column).filter(pa.array(mask)).cast(pa.binary())
            writer.write_table(pa.table([pa.array(rows[mask], pa.int32()), pictures], schema=schema))
            count += int(mask.sum())
    return count
