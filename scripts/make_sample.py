"""Make the sample that the package ships: two small real domains from UCI Online Retail II.

    python scripts/make_sample.py INPUT OUTPUT

INPUT is a folder with ``items.parquet`` and ``interactions.parquet`` in the canonical layout, timestamps
included: what ``catalex prepare`` makes of the raw UCI tables. OUTPUT gets two such folders, ``year-one``
(December 2009 to November 2010) and ``year-two`` (December 2010 to December 2011). The same input and seed
give the same bytes.

Each year is made the same way, in this order:

1. keep a customer's first purchase of each product in the year: with repeats kept, a recommender that copies
   the history looks good without having learned anything;
2. keep customers with 5 to 100 different products, which leaves the wholesalers out, and of these a seeded
   sample;
3. drop customers and products with fewer than five purchases, again and again until none is left (5-core);
4. number customers and products afresh. Lines of one invoice have one timestamp; they stay in the order of
   the input.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from catalex.artifacts import read_parquet, write_parquet
from catalex.data import columns as c
from catalex.errors import CatalexError, user_error
from catalex.types import Bools, Ints

BOUNDARY = int(datetime(2010, 12, 1, tzinfo=UTC).timestamp())
"""First second of year two."""

YEARS = ("year-one", "year-two")
CUSTOMERS = 2000
"""Customers drawn a year: a year then trains in minutes on two cores."""
FEWEST, MOST = 5, 100
"""Different products of a customer who may be drawn."""
CORE = 5
SEED = 20091201

SAMPLE_COLUMNS = [name for name in c.INTERACTIONS_SCHEMA.names if name != c.SPLIT]
"""A raw domain has no split yet; `catalex prepare` makes it."""


@dataclass(frozen=True)
class Events:
    """E purchases, sorted by customer and, within one, by time; ties in the order of the input."""

    users: Ints
    items: Ints
    times: Ints

    def __len__(self) -> int:
        return len(self.users)

    def where(self, keep: Bools) -> Events:
        """The purchases at which `keep` ``(E,)`` is true."""
        return Events(self.users[keep], self.items[keep], self.times[keep])


def first_purchases(events: Events) -> Events:
    """Each customer's first purchase of each product."""
    pairs = np.stack([events.users, events.items], axis=1)
    _, first = np.unique(pairs, axis=0, return_index=True)
    keep = np.zeros(len(events), bool)
    keep[first] = True
    return events.where(keep)


def draw_customers(events: Events, customers: int, seed: int) -> Events:
    """Purchases of a seeded sample of the customers with FEWEST to MOST purchases."""
    counts = np.bincount(events.users)
    eligible = np.flatnonzero((counts >= FEWEST) & (counts <= MOST))
    drawn = np.random.default_rng(seed).permutation(eligible)[:customers]
    return events.where(np.isin(events.users, drawn))


def core(events: Events, least: int = CORE) -> Events:
    """The largest part in which every customer and every product has at least `least` purchases."""
    while len(events):
        keep = (np.bincount(events.users)[events.users] >= least) & (
            np.bincount(events.items)[events.items] >= least
        )
        if keep.all():
            break
        events = events.where(keep)
    return events


def make_domain(events: Events, items: pa.Table, customers: int, seed: int) -> tuple[pa.Table, pa.Table]:
    """Items and interactions of one year, numbered afresh in the order of the input's ids."""
    kept = core(draw_customers(first_purchases(events), customers, seed))
    old_items, new_items = np.unique(kept.items, return_inverse=True)
    _, new_users, counts = np.unique(kept.users, return_inverse=True, return_counts=True)
    positions = np.arange(len(kept)) - np.repeat(np.cumsum(counts) - counts, counts)
    catalogue = items.take(pa.array(old_items))
    catalogue = catalogue.set_column(0, c.ITEM_ID, pa.array(np.arange(len(old_items)), pa.int32()))
    arrays = {c.USER_ID: new_users, c.ITEM_ID: new_items, c.POSITION: positions, c.TIMESTAMP: kept.times}
    schema = pa.schema([c.INTERACTIONS_SCHEMA.field(name) for name in SAMPLE_COLUMNS])
    return catalogue.combine_chunks(), pa.table(
        {name: arrays[name] for name in SAMPLE_COLUMNS}, schema=schema
    )


def read_input(folder: Path) -> tuple[pa.Table, Events]:
    """Read and check the input.

    Raises:
        CatalexError: When a file or column is missing, or the timestamps are null.
    """
    items = read_parquet(folder / c.ITEMS_FILE, c.ITEMS_SCHEMA.names).cast(c.ITEMS_SCHEMA)
    table = read_parquet(folder / c.INTERACTIONS_FILE, SAMPLE_COLUMNS)
    if table[c.TIMESTAMP].null_count:
        raise user_error(
            f"column {c.TIMESTAMP!r} has null values",
            place=folder / c.INTERACTIONS_FILE,
            remedy="keep the time of each sale",
        )
    users, ids, positions, times = (table[n].to_numpy().astype(np.int64) for n in SAMPLE_COLUMNS)
    order = np.lexsort((positions, users))
    return items, Events(users[order], ids[order], times[order])


def make_sample(
    source: Path, target: Path, customers: int = CUSTOMERS, seed: int = SEED
) -> dict[str, dict[str, int]]:
    """Write both years below `target`; returns what was counted, by year."""
    items, events = read_input(source)
    parts = dict(zip(YEARS, (events.times < BOUNDARY, events.times >= BOUNDARY), strict=True))
    facts: dict[str, dict[str, int]] = {}
    earlier: set[str] = set()
    sold_earlier: set[str] = set()
    for year, keep in parts.items():
        within = events.where(keep)
        catalogue, purchases = make_domain(within, items, customers, seed)
        write_parquet(target / year / c.ITEMS_FILE, catalogue)
        write_parquet(target / year / c.INTERACTIONS_FILE, purchases)
        products = set(catalogue[c.SOURCE_ID].to_pylist())
        facts[year] = {
            "customers": len(purchases[c.USER_ID].unique()),
            "products": len(products),
            "purchases": purchases.num_rows,
            "products not in the year-one sample": len(products - earlier) if earlier else 0,
            "products never sold in year one": len(products - sold_earlier) if sold_earlier else 0,
        }
        earlier |= products
        sold_earlier |= set(items[c.SOURCE_ID].take(pa.array(np.unique(within.items))).to_pylist())
    return facts


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("input", type=Path, help="folder with items.parquet and interactions.parquet")
    parser.add_argument("output", type=Path, help="folder that gets year-one and year-two")
    arguments = parser.parse_args()
    try:
        facts = make_sample(arguments.input, arguments.output)
    except CatalexError as error:
        raise SystemExit(str(error)) from None
    for year, counts in facts.items():
        print(year + ": " + ", ".join(f"{count:,} {what}" for what, count in counts.items()))


if __name__ == "__main__":
    main()
