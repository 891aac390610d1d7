"""`Trie`: the index of a catalogue's valid identifiers, as token ids.

The identifiers, sorted, are cut into levels. Level l has one node for each distinct prefix of l tokens,
numbered in the order of the prefixes, so the children of a node are a range of consecutive nodes of the next
level:

====================  =======================================================================
``level.starts[p]``   first child of node p of the level above; ``starts[p + 1]`` ends the range
``level.tokens[n]``   last token of the prefix of node n
``items[n]``          item of leaf n (a leaf is a node of level L)
====================  =======================================================================

Nothing else is stored: a node's number is its edge's number. One million identifiers of four tokens take
about 16 bytes each. The arrays are replaced as a whole when items come or go, never altered, so that a search
which began before a change ends on the index it began with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from catalex.errors import user_error
from catalex.types import Ints

ABSENT = -1
"""Item of an identifier that is not in the catalogue; also fills a ranking which ends early."""

Small = NDArray[np.int32]


@dataclass(frozen=True)
class Level:
    """The n nodes of a level: ``tokens (n,)``, and ``starts (m + 1,)`` for the m nodes of the level above."""

    tokens: Small
    starts: Small


@dataclass(frozen=True)
class DeviceLevel:
    """A `Level` as int32 tensors, with the largest number of children that a node of the level above has."""

    tokens: Tensor
    starts: Tensor
    fan_out: int


@dataclass(frozen=True)
class DeviceTrie:
    """An unchanging copy of a `Trie` on one device; what the search walks.

    Attributes:
        levels: The L levels, the root's children first.
        items: ``(leaves,)`` int32 item of each leaf.
        size: Item ids given so far (those of removed items included): the width of an item mask.
        highest_token: The largest token of any identifier; 0 without items.
    """

    levels: tuple[DeviceLevel, ...]
    items: Tensor
    size: int
    highest_token: int


@dataclass(frozen=True)
class _Index:
    """One state of a `Trie`. Replaced as a whole: another thread never sees half of two states."""

    levels: tuple[Level, ...]
    items: Small
    size: int
    copies: dict[torch.device, DeviceTrie] = field(default_factory=dict)


class Trie:
    """Identifiers of one catalogue, growable; item i is row i of the tokens it was built from.

    Args:
        tokens: ``(N, L)`` integers above 0 (0 is padding), rows distinct. N may be 0 for a catalogue that
            starts empty.

    Raises:
        CatalexError: When two rows are equal, a token is not positive, or the array is not two-dimensional
            integers.
    """

    def __init__(self, tokens: NDArray[Any]) -> None:
        rows = _checked(tokens, None)
        self.length = rows.shape[1]
        self._index = _Index(_levels(rows[:0]), np.zeros(0, np.int32), 0)
        self.add(rows)

    def __len__(self) -> int:
        """Number of items that can be decoded (removed ones are not counted)."""
        return len(self._index.items)

    def __contains__(self, identifier: Sequence[int]) -> bool:
        """Whether the L tokens are the identifier of an item."""
        row = np.asarray(identifier)
        return row.shape == (self.length,) and bool(self.item_of(row[None])[0] != ABSENT)

    @property
    def nbytes(self) -> int:
        """Bytes of the index."""
        index = self._index
        return index.items.nbytes + sum(level.tokens.nbytes + level.starts.nbytes for level in index.levels)

    @property
    def size(self) -> int:
        """Item ids given so far, those of removed items included: the width of an item mask."""
        return self._index.size

    @property
    def active(self) -> NDArray[np.bool_]:
        """``(size,)`` whether each item id given so far can be decoded."""
        index = self._index
        active = np.zeros(index.size, bool)
        active[index.items] = True
        return active

    def item_of(self, tokens: NDArray[Any]) -> Ints:
        """``(n,)`` item of each row of ``tokens (n, L)``, `ABSENT` where no item has it."""
        rows, index = np.asarray(tokens), self._index
        node, found = np.zeros(len(rows), np.int64), np.full(len(rows), len(index.items) > 0)
        for level, column in zip(index.levels, rows.T, strict=True):
            if not found.any():
                break
            node, here = _child(level, np.where(found, node, 0), column)
            found &= here
        items = np.full(len(rows), ABSENT, np.int64)
        items[found] = index.items[node[found]]
        return items

    def rows(self) -> tuple[Small, Ints]:
        """``(n, L)`` tokens of the n items that can be decoded, in sorted order, and their ``(n,)`` items."""
        index = self._index
        columns: list[Small] = []
        for level in index.levels:
            children = np.diff(level.starts)
            columns = [*(np.repeat(column, children) for column in columns), level.tokens]
        return np.stack(columns, axis=1), index.items.astype(np.int64)

    def add(self, tokens: NDArray[Any]) -> None:
        """Give the next item ids to the rows of ``tokens (n, L)``. No other item changes.

        Linear in the size of the catalogue with a small constant (the old rows are already sorted).

        Raises:
            CatalexError: When a row is not valid, occurs twice, or is the identifier of an item.
        """
        new = _checked(tokens, self.length)
        taken = np.flatnonzero(self.item_of(new) != ABSENT)
        if len(taken):
            raise _duplicate(new[taken[0]])
        old, items = self.rows()
        rows = np.concatenate([old, new])
        order = _sorted(rows)
        ids = np.concatenate([items, np.arange(self.size, self.size + len(new))]).astype(np.int32)
        self._index = _Index(_levels(rows[order]), ids[order], self.size + len(new))

    def remove(self, items: Sequence[int] | NDArray[Any]) -> None:
        """Take items out of the index. Their ids stay unused, their identifiers are free again.

        Raises:
            CatalexError: When an id is not that of an item in the index.
        """
        gone = np.asarray(items, dtype=np.int64).reshape(-1)
        outside = (gone < 0) | (gone >= self.size)
        if not outside.any():
            outside = ~self.active[gone]
        if outside.any():
            raise user_error(
                "the item is not in the index", place="items to remove", value=int(gone[outside][0])
            )
        rows, ids = self.rows()
        keep = ~np.isin(ids, gone)
        self._index = _Index(_levels(rows[keep]), ids[keep].astype(np.int32), self.size)

    def to(self, device: torch.device | str) -> DeviceTrie:
        """The index as tensors on `device`; copied once for each state of the index."""
        device, index = torch.device(device), self._index
        if device not in index.copies:
            levels = tuple(
                DeviceLevel(
                    torch.from_numpy(level.tokens).to(device),
                    torch.from_numpy(level.starts).to(device),
                    int(np.diff(level.starts).max(initial=0)),
                )
                for level in index.levels
            )
            highest = max(int(level.tokens.max(initial=0)) for level in index.levels)
            items = torch.from_numpy(index.items).to(device)
            index.copies[device] = DeviceTrie(levels, items, index.size, highest)
        return index.copies[device]


def _checked(tokens: NDArray[Any], length: int | None) -> Small:
    """`tokens` as int32 ``(n, L)``."""
    rows = np.asarray(tokens)
    if rows.ndim != 2 or rows.shape[1] == 0 or not np.issubdtype(rows.dtype, np.integer):
        shape = f"{rows.dtype} {rows.shape}"
        raise user_error(
            "identifiers must be rows of integers",
            place="identifiers",
            value=shape,
            allowed="(items, levels)",
        )
    if length is not None and rows.shape[1] != length:
        raise user_error(
            "identifiers have another number of levels",
            place="identifiers",
            value=rows.shape[1],
            allowed=f"{length}",
        )
    if rows.size and (rows.min() <= 0 or rows.max() >= 2**31 - 1):
        wrong = int(rows.min() if rows.min() <= 0 else rows.max())
        raise user_error(
            "a token is out of range", place="identifiers", value=wrong, allowed="1 to 2147483646",
            remedy="map codes to tokens first: token 0 is padding",
        )  # fmt: skip
    return rows.astype(np.int32)


def _duplicate(row: Small) -> Exception:
    return user_error(
        "two items have one identifier", place="identifiers", value=tuple(row.tolist()),
        remedy="resolve conflicts before building the index",
    )  # fmt: skip


def _sorted(rows: Small) -> Ints:
    """Order that sorts `rows`; linear when they are one or two sorted runs.

    Rows become one integer each where they fit in 63 bits. NumPy's stable sort finds runs that are already in
    order.
    """
    span = int(rows.max(initial=0)) + 1
    if span ** rows.shape[1] < 2**63:
        keys = np.zeros(len(rows), np.int64)
        for column in rows.T:
            keys = keys * span + column
        return np.argsort(keys, kind="stable")
    return np.lexsort(rows.T[::-1])


def _levels(rows: Small) -> tuple[Level, ...]:
    """Cut sorted `rows` into levels.

    Raises:
        CatalexError: When two rows are equal.
    """
    levels: list[Level] = []
    begins = np.zeros(len(rows), bool)  # whether a row is the first of its prefix
    begins[:1] = True
    above = np.zeros(1, np.int64)  # first row of each node of the level above; the root's is row 0
    for column in rows.T:
        begins[1:] |= column[1:] != column[:-1]
        first = np.flatnonzero(begins)
        starts = np.append(np.searchsorted(first, above), len(first)).astype(np.int32)
        levels.append(Level(column[first], starts))
        above = first
    if not begins.all():
        raise _duplicate(rows[np.argmin(begins)])
    return tuple(levels)


def _child(level: Level, nodes: Ints, tokens: NDArray[Any]) -> tuple[Ints, NDArray[np.bool_]]:
    """The child of each of `nodes` that has the token, and whether there is one (binary search)."""
    low, end = level.starts[nodes].astype(np.int64), level.starts[nodes + 1].astype(np.int64)
    high = end.copy()
    while (low < high).any():
        middle = (low + high) // 2
        right = (low < high) & (level.tokens[np.minimum(middle, len(level.tokens) - 1)] < tokens)
        low, high = np.where(right, middle + 1, low), np.where(right, high, np.minimum(middle, high))
    inside = low < end
    return low, inside & (level.tokens[np.where(inside, low, 0)] == tokens)
