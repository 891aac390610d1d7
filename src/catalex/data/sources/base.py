"""The interface of data sources: raw files in, two lazy tables out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import polars as pl

from catalex.options import Options


@dataclass(frozen=True)
class RawDomain:
    """What every source yields, before filtering.

    Attributes:
        items: Lazy frame, one row an item: `source_id` (string, unique) and any of title, brand, categories
            (list of strings), description, keywords, extra (JSON string), image. Missing columns count as
            null.
        interactions: Lazy frame, one row an event: `user` (string or integer), `source_id` (string) and
            `timestamp` (int64 Unix seconds, nullable) or `position` (int64 order within the user), or both.
        images: Folder or Parquet file with image bytes, when the source ships them.
    """

    items: pl.LazyFrame
    interactions: pl.LazyFrame
    images: Path | None = None


class Source(ABC):
    """Reads one dataset's raw files. One file and one class a dataset, finished classes only below this."""

    Options: ClassVar[type[Options]]

    @abstractmethod
    def files(self) -> Sequence[Path]:
        """The raw files that will be read; their hashes identify the prepared domain.

        Raises:
            CatalexError: When a file is missing or empty.
        """

    @abstractmethod
    def read(self) -> RawDomain:
        """Open the files lazily.

        Raises:
            CatalexError: When a column is missing, a value has the wrong type, or a file is truncated.
        """
