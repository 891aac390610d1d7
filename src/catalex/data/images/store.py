"""``images.parquet``: its columns, and reading it back by item."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from catalex.artifacts import read_parquet
from catalex.data.columns import ITEM_ID
from catalex.errors import user_error
from catalex.types import Ints

_TYPES: dict[str, Any] = {
    ITEM_ID: pa.int32(),
    "jpeg": pa.binary(),
    "width": pa.int32(),
    "height": pa.int32(),
    "source": pa.string(),
}
IMAGES_SCHEMA = pa.schema(_TYPES)
"""Columns of ``images.parquet``: one row an item with an image, in order of item; `source` is its address."""

ROWS_PER_GROUP = 256
"""Rows of a Parquet row group: what one random access reads (about 2 MB of small JPEGs)."""


class ImageStore:
    """Reads ``images.parquet`` by item, one row group at a time; the most recent groups stay in memory.

    >>> store = ImageStore(folder / "images.parquet")     # doctest: +SKIP
    >>> store.get(17)                                     # doctest: +SKIP
    b'\\xff\\xd8...'
    """

    def __init__(self, path: Path, *, groups_in_memory: int = 4) -> None:
        """Read the item ids; the images themselves are read when asked for.

        Raises:
            CatalexError: When the file is missing or damaged, lacks a column, or has an item twice.
        """
        self.path = path
        ids = read_parquet(path, [ITEM_ID])[ITEM_ID]
        self._ids: Ints = ids.to_numpy().astype(np.int64)
        self._row = {int(item): row for row, item in enumerate(self._ids)}
        if len(self._row) != len(self._ids):
            raise user_error("an item occurs twice", place=path, remedy="fetch the images again")
        self._file = pq.ParquetFile(path)
        if "jpeg" not in self._file.schema_arrow.names:
            raise user_error("column 'jpeg' is missing", place=path, allowed=self._file.schema_arrow.names)
        sizes = [self._file.metadata.row_group(g).num_rows for g in range(self._file.metadata.num_row_groups)]
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])
        self._groups: OrderedDict[int, pa.ChunkedArray[Any]] = OrderedDict()
        self._capacity = groups_in_memory
        self._lock = threading.Lock()

    @property
    def ids(self) -> Ints:
        """Item ids that have an image, in file order."""
        return self._ids

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._row

    def __iter__(self) -> Iterator[int]:
        return iter(self._row)

    def get(self, item_id: int) -> bytes | None:
        """The JPEG bytes of an item, or None when it has no image."""
        row = self._row.get(int(item_id))
        if row is None:
            return None
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        with self._lock:
            if group in self._groups:
                self._groups.move_to_end(group)
            else:
                self._groups[group] = self._file.read_row_group(group, columns=["jpeg"])["jpeg"]
                if len(self._groups) > self._capacity:
                    self._groups.popitem(last=False)
            found: bytes | None = self._groups[group][row - int(self._starts[group])].as_py()
        return found
