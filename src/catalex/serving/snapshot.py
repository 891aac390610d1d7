"""A store as a folder of Parquet files: a backup, and the way from SQLite to PostgreSQL or back.

::

    snapshot.json        format, schema version, domain, revision, rows and hash of every file
    state.parquet, items.parquet, images.parquet, identifiers.parquet

All files are of one moment, while the service goes on. Identifiers, numbers and the revision come back as
they were.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa

from catalex.artifacts import hash_file, read_json, write_json
from catalex.errors import user_error
from catalex.progress import Track
from catalex.serving.schema import MIGRATIONS, STATE, TABLES
from catalex.serving.store import Store

FORMAT = 1
MANIFEST = "snapshot.json"
CHUNK = 2000
"""Rows held at once."""

_KINDS: tuple[tuple[type[Any], Any], ...] = (
    (sa.Boolean, pa.bool_()),
    (sa.Integer, pa.int64()),
    (sa.LargeBinary, pa.binary()),
    (sa.Text, pa.string()),
)


def write_snapshot(store: Store, folder: Path) -> dict[str, Any]:
    """Write a snapshot; the folder appears whole or not at all. Returns its manifest.

    Raises:
        CatalexError: When the folder exists, or the store is empty.
    """
    if folder.exists():
        raise user_error("the folder exists already", place=folder, remedy="name another, or remove it first")
    if store.domain() is None:
        raise user_error("the store is empty", place=store.place, remedy="serve a bundle with it first")
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        with store.reading() as connection:
            state = connection.execute(sa.select(STATE)).mappings().one()
            counts = {table.name: _dump(connection, table, fresh) for table in TABLES}
        manifest = {
            "format": FORMAT,
            "schema": len(MIGRATIONS),
            "domain": state["domain"],
            "revision": state["revision"],
            "rows": counts,
            "files": {f"{name}.parquet": hash_file(fresh / f"{name}.parquet") for name in counts},
        }
        write_json(fresh / MANIFEST, manifest)
        fresh.rename(folder)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return manifest


def restore_snapshot(store: Store, folder: Path) -> dict[str, Any]:
    """Fill an empty store from a snapshot, in one transaction. Returns the manifest.

    Raises:
        CatalexError: When the folder is no snapshot of this version or was changed, or the store is not
            empty.
    """
    manifest = _checked(folder)
    with store.writing() as writer:
        if writer.domain is not None:
            raise user_error(
                "the store is not empty",
                place=store.place,
                value=f"{writer.domain!r} at revision {writer.before}",
                remedy="restore into a new store, and serve that",
            )
        total = sum(manifest["rows"].values())
        with Track("restore", total=total, unit="rows") as track:
            for table in TABLES:
                for batch in pq.ParquetFile(folder / f"{table.name}.parquet").iter_batches(CHUNK):
                    writer.fill(table, batch.to_pylist())
                    track.advance(batch.num_rows)
    return manifest


def _dump(connection: sa.Connection, table: sa.Table, folder: Path) -> int:
    """Write a table; returns its rows."""
    columns = [(column.name, _kind(column)) for column in table.columns]
    schema: Any = pa.schema([pa.field(name, kind) for name, kind in columns])
    rows = 0
    query = sa.select(table).order_by(*table.primary_key.columns)
    with pq.ParquetWriter(folder / f"{table.name}.parquet", schema, compression="zstd") as writer:
        found = connection.execution_options(yield_per=CHUNK).execute(query)
        for part in found.mappings().partitions():
            writer.write_table(_table(part, schema))
            rows += len(part)
    return rows


def _table(rows: Sequence[Any], schema: Any) -> Any:
    return pa.Table.from_pylist([dict(row) for row in rows], schema=schema)


def _kind(column: sa.Column[Any]) -> Any:
    return next(kind for of, kind in _KINDS if isinstance(column.type, of))


def _checked(folder: Path) -> dict[str, Any]:
    if not (folder / MANIFEST).is_file():
        raise user_error(
            f"this folder holds no {MANIFEST}, so it is not a snapshot",
            place=folder,
            remedy="make one with 'catalex catalogue snapshot'",
        )
    manifest: dict[str, Any] = read_json(folder / MANIFEST)
    version = (manifest.get("format"), manifest.get("schema"))
    if version != (FORMAT, len(MIGRATIONS)):
        raise user_error(
            "the snapshot was written by another version",
            place=folder / MANIFEST,
            value=version,
            allowed=f"format {FORMAT}, schema {len(MIGRATIONS)}",
            remedy="restore it with that version into a SQLite store, which this version then migrates",
        )
    for name, digest in manifest["files"].items():
        if not (folder / name).is_file() or hash_file(folder / name) != digest:
            raise user_error(
                "the file is missing or differs from the snapshot's manifest",
                place=folder / name,
                remedy="copy the snapshot again",
            )
    return manifest
