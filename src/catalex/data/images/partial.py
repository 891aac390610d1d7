"""Finished images of a fetch that is not finished: a small database by address, safe against a kill."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from catalex.artifacts import atomic_path, read_parquet
from catalex.data.columns import IMAGES_FILE
from catalex.data.images.store import IMAGES_SCHEMA, ROWS_PER_GROUP
from catalex.errors import user_error

PARTIAL_FILE = "images.partial.sqlite"
COLUMNS = ["source", "jpeg", "width", "height"]


def open_partial(folder: Path) -> sqlite3.Connection:
    """The store of finished images by address; begun from ``images.parquet`` when that is all there is."""
    path = folder / PARTIAL_FILE
    earlier = folder / IMAGES_FILE
    begins = not path.exists() and earlier.exists()
    if begins:
        _check_columns(earlier)
    try:
        store = sqlite3.connect(path)
        store.execute(
            "CREATE TABLE IF NOT EXISTS images (source TEXT PRIMARY KEY, jpeg BLOB, width INT, height INT)"
        )
    except sqlite3.Error as error:
        raise user_error(
            f"the file cannot be used ({error})", place=path, remedy="delete it and run again"
        ) from None
    if begins:
        with pq.ParquetFile(earlier) as file:
            for batch in file.iter_batches(ROWS_PER_GROUP, columns=COLUMNS):
                rows = zip(*(column.to_pylist() for column in batch.columns), strict=True)
                store.executemany("INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?)", rows)
    store.commit()
    return store


def _check_columns(images: Path) -> None:
    """Refuse a damaged file, and one that came with a source: it does not say where its images are from."""
    read_parquet(images, [])
    present = pq.read_schema(images).names
    missing = [name for name in COLUMNS if name not in present]
    if missing:
        raise user_error(
            f"column {missing[0]!r} is missing, so these images were not fetched",
            place=images,
            remedy="move the file away to fetch its images anew",
        )


def write_images(target: Path, wanted: Mapping[int, str], lost: set[int], store: sqlite3.Connection) -> None:
    """``images.parquet`` with every wanted item that has an image, ascending by item."""
    items = [item for item in wanted if item not in lost]
    with (
        atomic_path(target) as temporary,
        pq.ParquetWriter(temporary, IMAGES_SCHEMA, compression="none") as writer,
    ):
        for start in range(0, len(items), ROWS_PER_GROUP):
            group = items[start : start + ROWS_PER_GROUP]
            rows = [
                (
                    item,
                    *store.execute(
                        "SELECT jpeg, width, height, source FROM images WHERE source = ?", [wanted[item]]
                    ).fetchone(),
                )
                for item in group
            ]
            columns = list(zip(*rows, strict=True))
            writer.write_table(pa.table([list(column) for column in columns], schema=IMAGES_SCHEMA))
