"""`IdentifierTable`: which identifier each item of each domain owns. One Parquet file, read by every later
stage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from catalex.artifacts import hash_json, read_parquet, write_parquet
from catalex.errors import lookup, user_error
from catalex.tokenizers.base import CodeSpace
from catalex.tokenizers.folder import weights_hash
from catalex.types import Codes

_COLUMNS: Any = [
    ("domain", pa.string()),
    ("item_id", pa.int32()),
    ("codes", pa.list_(pa.int32())),
    ("version", pa.string()),
]
SCHEMA: Any = pa.schema(_COLUMNS)
METADATA_KEY = b"catalex"


def identifier_version(folder: Path, method: str) -> str:
    """Names identifiers by what made them: the weights of the tokenizer in `folder` and the conflict
    method."""
    return hash_json({"weights": weights_hash(folder), "method": method})[:16]


@dataclass(frozen=True)
class IdentifierTable:
    """Identifiers of the items of one or more domains.

    Attributes:
        space: Levels and sizes of the identifiers, after conflict handling.
        unique: Whether identifiers are unique within each domain (always, unless conflicts were left on
            purpose).
        codes: For each domain ``(N, L)``, row i for item i.
        versions: For each domain the N versions of the rows; see `identifier_version`.
    """

    space: CodeSpace
    unique: bool = True
    codes: Mapping[str, Codes] = field(default_factory=dict)
    versions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def domains(self) -> list[str]:
        """Names of the domains, in the order they were added."""
        return list(self.codes)

    def of(self, domain: str) -> Codes:
        """Identifiers ``(N, L)`` of a domain.

        Raises:
            CatalexError: When the table has no such domain.
        """
        return lookup(self.codes, domain, "domain of the identifier table")

    def add(self, domain: str, codes: Codes, version: str) -> IdentifierTable:
        """A table with `codes` ``(M, L)`` for the next M items of `domain`; the rows so far are untouched.

        Raises:
            CatalexError: When a code is out of range or an identifier is owned already.
        """
        before = self.codes.get(domain, np.zeros((0, self.space.levels), np.int32))
        if codes.ndim != 2 or codes.shape[1] != self.space.levels:
            raise user_error(
                "identifiers have the wrong number of codes",
                place=f"domain {domain!r}",
                value=codes.shape,
                allowed=f"{self.space.levels} codes an item",
            )
        after = np.concatenate([before, codes.astype(np.int32)])
        versions = (*self.versions.get(domain, ()), *[version] * len(codes))
        table = IdentifierTable(
            self.space, self.unique, {**self.codes, domain: after}, {**self.versions, domain: versions}
        )
        table._check(domain, f"domain {domain!r}")
        return table

    def save(self, path: Path) -> None:
        """Write the Parquet file; the code space stands in the metadata of its schema."""
        arrays = [self.codes[domain] for domain in self.codes]
        owners = [domain for domain, rows in self.codes.items() for _ in range(len(rows))]
        items = [item for rows in arrays for item in range(len(rows))]
        codes = [identifier for rows in arrays for identifier in rows.tolist()]
        versions = [version for domain in self.codes for version in self.versions[domain]]
        columns = zip((owners, items, codes, versions), SCHEMA.types, strict=True)
        space = {"sizes": list(self.space.sizes), "groups": list(self.space.groups), "unique": self.unique}
        schema = SCHEMA.with_metadata({METADATA_KEY: json.dumps(space).encode()})
        write_parquet(
            path, pa.Table.from_arrays([pa.array(values, kind) for values, kind in columns], schema=schema)
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read and check a file that `save` wrote.

        Raises:
            CatalexError: When the file is missing, damaged, or an identifier occurs twice in a domain.
        """
        table = read_parquet(path, SCHEMA.names)
        if METADATA_KEY not in (table.schema.metadata or {}):
            raise user_error(
                "the file does not say what the codes mean", place=path, remedy="run 'catalex tokenize' again"
            )
        space = json.loads(table.schema.metadata[METADATA_KEY])
        levels = len(space["sizes"])
        lists: Any = table["codes"].combine_chunks()
        lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
        if not (lengths == levels).all():
            row = int(np.flatnonzero(lengths != levels)[0])
            raise user_error(
                "an identifier has the wrong number of codes", place=f"{path}, row {row}", allowed=str(levels)
            )
        rows = lists.flatten().to_numpy(zero_copy_only=False).astype(np.int32).reshape(-1, levels)
        names = [str(name) for name in table["domain"].to_pylist()]
        versions = [str(version) for version in table["version"].to_pylist()]
        items = table["item_id"].to_numpy()
        codes: dict[str, Codes] = {}
        marks: dict[str, tuple[str, ...]] = {}
        starts = [i for i, name in enumerate(names) if i == 0 or name != names[i - 1]]
        for start, end in pairwise([*starts, len(names)]):
            if names[start] in codes or not np.array_equal(items[start:end], np.arange(end - start)):
                raise user_error(
                    "items of a domain are missing or out of order",
                    place=f"{path}, domain {names[start]!r}",
                    remedy="run 'catalex tokenize' again",
                )
            codes[names[start]] = rows[start:end]
            marks[names[start]] = tuple(versions[start:end])
        meaning = CodeSpace(tuple(space["sizes"]), tuple(space["groups"]))
        found = cls(meaning, bool(space["unique"]), codes, marks)
        for domain in codes:
            found._check(domain, f"{path}, domain {domain!r}")
        return found

    def _check(self, domain: str, place: str) -> None:
        """Refuse codes out of range and, unless conflicts were left, identifiers with two owners."""
        codes = self.codes[domain]
        outside = (codes < 0) | (codes >= np.asarray(self.space.sizes))
        if outside.any():
            item, level = map(int, np.argwhere(outside)[0])
            raise user_error(
                f"a code of item {item} is out of range at level {level + 1}",
                place=place,
                value=int(codes[item, level]),
                allowed=f"0 to {self.space.sizes[level] - 1}",
            )
        if not self.unique:
            return
        distinct, owner, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
        if len(distinct) < len(codes):
            group = int(np.flatnonzero(counts > 1)[0])
            owners = np.flatnonzero(owner.ravel() == group)[:2].tolist()
            raise user_error(
                f"items {owners[0]} and {owners[1]} have the same identifier",
                place=place,
                value=tuple(distinct[group].tolist()),
                allowed="one item an identifier",
                remedy="resolve conflicts with method 'reassign' or 'digit'",
            )
