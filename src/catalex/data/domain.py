"""`Domain`: a prepared canonical domain folder, read with pyarrow alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from catalex.artifacts import read_json, read_parquet
from catalex.data import columns as c
from catalex.data.histories import Histories, SplitHistories
from catalex.errors import user_error


@dataclass(frozen=True)
class Domain:
    """One catalogue with its interactions and its split, as `catalex prepare` wrote them.

    Attributes:
        name: Name of the domain in recipes and tables.
        folder: The canonical domain folder.
        items: N rows with the columns of `columns.ITEMS_SCHEMA`.
        sequences: Interactions by user, each with its part of the split.
        manifest: Counts, hashes, split and origin.
    """

    name: str
    folder: Path
    items: pa.Table
    sequences: SplitHistories
    manifest: dict[str, Any]

    @classmethod
    def load(cls, folder: Path) -> Domain:
        """Read and check a prepared folder.

        Raises:
            CatalexError: When a file is missing or damaged, or the files contradict each other.
        """
        manifest = read_json(folder / c.MANIFEST_FILE)
        items = read_parquet(folder / c.ITEMS_FILE, c.ITEMS_SCHEMA.names)
        events = read_parquet(folder / c.INTERACTIONS_FILE, [c.USER_ID, c.ITEM_ID, c.SPLIT])
        users = events[c.USER_ID].to_numpy().astype(np.int64)
        flat = events[c.ITEM_ID].to_numpy().astype(np.int64)
        if len(flat) and (flat.min() < 0 or flat.max() >= items.num_rows):
            raise user_error(
                "an interaction names an item that is not in the catalogue",
                place=folder / c.INTERACTIONS_FILE,
                value=int(flat.max()),
                allowed=f"0 to {items.num_rows - 1}",
                remedy="run 'catalex prepare' again",
            )
        if np.any(np.diff(users) < 0):
            raise user_error(
                "interactions are not sorted by user",
                place=folder / c.INTERACTIONS_FILE,
                remedy="run 'catalex prepare' again",
            )
        counts = np.bincount(users, minlength=int(users[-1]) + 1 if len(users) else 0)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        parts = events[c.SPLIT].to_numpy().astype(np.int64)
        return cls(
            str(manifest["name"]), folder, items, SplitHistories(Histories(offsets, flat), parts), manifest
        )

    def __len__(self) -> int:
        """Number of items N."""
        return int(self.items.num_rows)

    @property
    def split_id(self) -> str:
        """Names the split that models were trained on; evaluation refuses another."""
        return self.sequences.split_id

    @cached_property
    def titles(self) -> list[str]:
        """Something to show a person for each of the N items: title, else keywords, else the source id."""
        found = []
        for row in self.items.select([c.TITLE, c.KEYWORDS, c.SOURCE_ID, c.ITEM_ID]).to_pylist():
            found.append(row[c.TITLE] or row[c.KEYWORDS] or row[c.SOURCE_ID] or f"item {row[c.ITEM_ID]}")
        return found

    def extra(self, row: int) -> dict[str, Any]:
        """Further fields of one item."""
        text = self.items[c.EXTRA][row].as_py()
        fields: dict[str, Any] = json.loads(text) if text else {}
        return fields
