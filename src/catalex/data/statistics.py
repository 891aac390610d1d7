"""The numbers that papers print about a domain, read from its prepared folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from catalex.data import columns as c
from catalex.data.domain import Domain


def text_coverage(items: pa.Table) -> dict[str, int]:
    """Number of items with each kind of text, with an image reference, and without any text.

    `without_text` counts items that have none of `columns.TEXT_COLUMNS`; they are kept, and encoders see an
    empty string.
    """
    found: dict[str, int] = {}
    without = np.ones(items.num_rows, np.bool_)
    for name in (*c.TEXT_COLUMNS, c.EXTRA, c.IMAGE):
        column: Any = items[name]
        mask = np.asarray(pc.is_valid(column), dtype=np.bool_)
        if name == c.CATEGORIES:
            mask &= np.asarray(pc.fill_null(pc.list_value_length(column), 0)) > 0
        found[name] = int(mask.sum())
        if name in c.TEXT_COLUMNS:
            without &= ~mask
    found["without_text"] = int(without.sum())
    return found


def statistics(domain: Domain | Path) -> dict[str, Any]:
    """Counts, lengths, sparsity, items per text column, images and sizes of the split.

    Args:
        domain: A loaded domain or its folder.

    Raises:
        CatalexError: When the folder is not a prepared domain.
    """
    if isinstance(domain, Path):
        domain = Domain.load(domain)
    lengths = domain.sequences.all.lengths
    users, items, events = len(lengths), len(domain), int(lengths.sum())
    images = domain.folder / c.IMAGES_FILE
    parts = np.bincount(domain.sequences.parts, minlength=3)
    return {
        "name": domain.name,
        "users": users,
        "items": items,
        "interactions": events,
        "mean_length": float(lengths.mean()) if users else 0.0,
        "median_length": float(np.median(lengths)) if users else 0.0,
        "longest": int(lengths.max(initial=0)),
        "sparsity": 1 - events / (users * items) if users and items else 1.0,
        "items_without_interactions": items - len(np.unique(domain.sequences.all.items)),
        "coverage": text_coverage(domain.items),
        "images": int(pq.read_metadata(images).num_rows) if images.is_file() else 0,
        "split": str(domain.manifest["split"]["kind"]),
        "parts": {"train": int(parts[c.TRAIN]), "valid": int(parts[c.VALID]), "test": int(parts[c.TEST])},
    }


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """A printable table with one line a domain, from results of `statistics`."""
    shown = Table(title="Domains")
    shown.add_column("domain")
    for heading in ("users", "items", "interactions", "mean length", "sparsity"):
        shown.add_column(heading, justify="right")
    for name in c.TEXT_COLUMNS:
        shown.add_column(name, justify="right")
    shown.add_column("no text", justify="right")
    shown.add_column("images", justify="right")
    for row in rows:
        coverage = row["coverage"]
        shown.add_row(
            row["name"],
            f"{row['users']:,}",
            f"{row['items']:,}",
            f"{row['interactions']:,}",
            f"{row['mean_length']:.1f}",
            f"{100 * row['sparsity']:.2f} %",
            *(_share(coverage[name], row["items"]) for name in c.TEXT_COLUMNS),
            f"{coverage['without_text']:,}",
            f"{row['images']:,}",
        )
    return shown


def _share(count: int, items: int) -> str:
    return f"{100 * count / items:.1f} %" if count else "–"


def print_statistics(folders: Sequence[Path]) -> None:
    """Print the table of prepared folders."""
    Console(width=180).print(table([statistics(folder) for folder in folders]))
