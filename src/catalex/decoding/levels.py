"""The arrays of a trie: cut from identifiers in any order, and changed where items come or go.

Cutting sorts each identifier as one integer: its tokens packed side by side, the number of its row in the
lowest bits. A single sort of 64-bit integers (vectorised, no indirection) then brings tokens and items into
order together, and two neighbours share a prefix when their exclusive or has no bit set above the remaining
tokens. Ten million identifiers of four tokens take about a second on one core.

Few items that come or go need no sort: the arrays are copied in blocks around the places that change.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catalex.errors import user_error
from catalex.types import Ints

Small = NDArray[np.int32]
Tokens = NDArray[Any]
"""int16 where every token of the level is below 2**15, else int32."""
Flags = NDArray[np.bool_]

BLOCKS = 4096
"""Changed places up to which copying block by block beats NumPy's insertion and deletion."""


@dataclass(frozen=True)
class Level:
    """The n nodes of a level: ``tokens (n,)``, and ``starts (m + 1,)`` for the m nodes of the level above.

    `fan_out` is the largest number of children that a node of the level above has.
    """

    tokens: Tokens
    starts: Small
    fan_out: int


@dataclass(frozen=True)
class Levels:
    """The L levels of a trie, and the ``(leaves,)`` int32 items of the nodes of the last."""

    levels: tuple[Level, ...]
    items: Small

    @property
    def nbytes(self) -> int:
        return self.items.nbytes + sum(level.tokens.nbytes + level.starts.nbytes for level in self.levels)


# --- from rows to levels ------------------------------------------------------------------------------------


def cut(rows: NDArray[Any], items: Ints) -> Levels:
    """Levels of the distinct identifiers ``rows (n, L)``, in any order, with their ``items (n,)``.

    Raises:
        CatalexError: When two rows are equal.
    """
    order, prefixes = _sorted(rows)
    levels: list[Level] = []
    above = np.zeros(len(rows), bool)  # whether a row is the first of its prefix at the level above
    above[:1] = True
    for begins, first, tokens in prefixes:
        # a node of the level above starts where one of its rows, the first, starts a node of this level
        starts = np.append(np.flatnonzero(above[first]), len(first)).astype(np.int32)
        if not len(rows):
            starts = np.zeros(1 if levels else 2, np.int32)  # the root exists without children
        levels.append(Level(_narrow(tokens), starts, _widest(np.diff(starts))))
        above = begins
    if not above.all():
        raise duplicate(rows[order[np.argmin(above)]])
    return Levels(tuple(levels), items[order].astype(np.int32))


Prefixes = Iterator[tuple[Flags, Ints, NDArray[Any]]]
"""For each level: whether a sorted row is the first of its prefix, those rows, and their last tokens."""


def _sorted(rows: NDArray[Any]) -> tuple[Ints, Prefixes]:
    """Order that sorts `rows`, and what the levels are made of."""
    low = [int(column.min()) if len(rows) else 0 for column in rows.T]
    widths = [
        int(column.max(initial=least) - least).bit_length() for column, least in zip(rows.T, low, strict=True)
    ]
    place = max(len(rows) - 1, 1).bit_length()
    if sum(widths) + place > 64:
        order = _order_of_wide(rows, low, widths)
        return order, _prefixes_of_rows(rows[order])
    keys = np.zeros(len(rows), np.uint64)
    for column, least, width in zip(rows.T, low, widths, strict=True):
        keys = _append(keys, column - least, width)
    keys = np.sort(_append(keys, np.arange(len(rows)), place))
    order = (keys & np.uint64(2**place - 1)).astype(np.int64)
    return order, _prefixes_of_keys(keys >> np.uint64(place), low, widths)


def _append(keys: NDArray[np.uint64], field: NDArray[Any], width: int) -> NDArray[np.uint64]:
    """`keys` with `field`, of `width` bits, below their bits."""
    keys <<= np.uint64(width)
    keys |= field.astype(np.uint64)
    return keys


def _prefixes_of_keys(keys: NDArray[np.uint64], low: list[int], widths: list[int]) -> Prefixes:
    apart = keys[1:] ^ keys[:-1]
    shift = sum(widths)
    for least, width in zip(low, widths, strict=True):
        shift -= width
        begins = np.ones(len(keys), bool)
        np.greater_equal(apart, np.uint64(1 << shift), out=begins[1:])
        first = np.flatnonzero(begins)
        fields = (keys[first] >> np.uint64(shift)) & np.uint64(2**width - 1)
        yield begins, first, fields.astype(np.int64) + least


def _prefixes_of_rows(rows: NDArray[Any]) -> Prefixes:
    begins = np.zeros(len(rows), bool)
    begins[:1] = True
    for column in rows.T:
        begins[1:] |= column[1:] != column[:-1]
        first = np.flatnonzero(begins)
        yield begins.copy(), first, column[first]


def _order_of_wide(rows: NDArray[Any], low: list[int], widths: list[int]) -> Ints:
    """Order of rows too wide for one integer: a prefix gives way to its rank before it grows too wide."""
    keys, used = np.zeros(len(rows), np.uint64), 0
    for column, least, width in zip(rows.T, low, widths, strict=True):
        if used + width > 64:
            order = np.argsort(keys)
            new = np.diff(keys[order]) != 0
            keys[order[1:]] = np.cumsum(new)
            keys[order[:1]] = 0
            used = int(new.sum()).bit_length()
        keys = _append(keys, column - least, width)
        used += width
    return np.argsort(keys)


def _narrow(tokens: NDArray[Any]) -> Tokens:
    return tokens.astype(np.int16 if tokens.max(initial=0) < 2**15 else np.int32)


def _widest(children: NDArray[Any]) -> int:
    return int(children.max(initial=0))


def duplicate(row: NDArray[Any]) -> Exception:
    return user_error(
        "two items have one identifier", place="identifiers", value=tuple(row.tolist()),
        remedy="resolve conflicts before building the index",
    )  # fmt: skip


# --- finding ------------------------------------------------------------------------------------------------


def find(levels: Levels, rows: NDArray[Any]) -> Iterator[tuple[Ints, Flags]]:
    """For each level, where the prefixes of ``rows (n, L)`` are or would be, and whether they are there.

    The place of a prefix is the number of nodes of its level that come before it.
    """
    place, there = np.zeros(len(rows), np.int64), np.ones(len(rows), bool)
    for level, column in zip(levels.levels, rows.T, strict=True):
        low = level.starts[place].astype(np.int64)
        # below a missing prefix nothing is searched: its place is where the next prefix has its first child
        end = np.where(there, level.starts[np.minimum(place + 1, len(level.starts) - 1)], low)
        high = end.copy()
        while (low < high).any():
            middle = (low + high) // 2
            right = (low < high) & (level.tokens[np.minimum(middle, len(level.tokens) - 1)] < column)
            low, high = np.where(right, middle + 1, low), np.where(right, high, np.minimum(middle, high))
        inside = np.flatnonzero(low < end)
        there = np.zeros(len(rows), bool)
        there[inside] = level.tokens[low[inside]] == column[inside]
        place = low
        yield place, there


def expand(levels: Levels) -> tuple[Small, Ints]:
    """``(n, L)`` tokens of all identifiers in sorted order, and their ``(n,)`` items."""
    columns: list[NDArray[Any]] = []
    for level in levels.levels:
        children = np.diff(level.starts)
        columns = [*(np.repeat(column, children) for column in columns), level.tokens]
    return np.stack(columns, axis=1).astype(np.int32), levels.items.astype(np.int64)


# --- changing -----------------------------------------------------------------------------------------------


def with_rows(levels: Levels, rows: NDArray[Any], items: Ints) -> Levels:
    """`levels` with the identifiers ``rows (m, L)`` of ``items (m,)`` added, none of which is in them yet.

    Raises:
        CatalexError: When two rows are equal.
    """
    order, _ = _sorted(rows)
    rows, items = rows[order], items[order]
    begins = np.zeros(len(rows), bool)
    begins[:1] = True
    parents = np.zeros(len(rows), np.int64)  # nodes of the level above, numbered with the new ones
    inserted = np.zeros(0, np.int64)  # where new nodes of the level above come
    changed: list[Level] = []
    for level, column, (place, there) in zip(levels.levels, rows.T, find(levels, rows), strict=True):
        begins[1:] |= column[1:] != column[:-1]
        new = begins & ~there
        children = _insert(np.diff(level.starts), inserted, np.zeros(len(inserted), np.int32))
        np.add.at(children, parents[new], 1)
        inserted = place[new]
        tokens = _insert(level.tokens, inserted, column[new])
        changed.append(Level(tokens, _summed(children), _widest(children)))
        parents = place + np.cumsum(new) - ~there
    if not begins.all():
        raise duplicate(rows[np.argmin(begins)])
    return Levels(tuple(changed), _insert(levels.items, inserted, items))


def without_leaves(levels: Levels, leaves: Ints) -> Levels:
    """`levels` without the ``leaves (m,)``, distinct and ascending; prefixes that lead nowhere go too."""
    changed: list[Level] = []
    gone = leaves
    items = _delete(levels.items, gone)
    for level in reversed(levels.levels):
        children = np.diff(level.starts)
        parents = np.searchsorted(level.starts, gone, side="right") - 1
        np.subtract.at(children, parents, 1)
        tokens, above = _delete(level.tokens, gone), np.unique(parents)
        gone = above[children[above] == 0]
        if len(changed) + 1 < len(levels.levels):
            children = _delete(children, gone)
        changed.append(Level(tokens, _summed(children), _widest(children)))
    return Levels(tuple(reversed(changed)), items)


def _summed(children: NDArray[Any]) -> Small:
    starts = np.zeros(len(children) + 1, np.int32)
    np.cumsum(children, out=starts[1:])
    return starts


def _insert(old: NDArray[Any], places: Ints, values: NDArray[Any]) -> NDArray[Any]:
    """`old` with ``values (m,)`` before its elements ``places (m,)``, ascending."""
    if values.max(initial=0) > np.iinfo(old.dtype).max:
        old = old.astype(np.int32)
    if len(places) > BLOCKS:
        return np.insert(old, places, values)
    found = np.empty(len(old) + len(places), old.dtype)
    begin = 0
    for i, place in enumerate(places.tolist()):
        found[begin + i : place + i] = old[begin:place]
        begin = place
    found[begin + len(places) :] = old[begin:]
    found[places + np.arange(len(places))] = values
    return found


def _delete(old: NDArray[Any], places: Ints) -> NDArray[Any]:
    """`old` without its elements ``places (m,)``, distinct and ascending."""
    if len(places) > BLOCKS:
        return np.delete(old, places)
    found = np.empty(len(old) - len(places), old.dtype)
    begin = 0
    for i, place in enumerate([*places.tolist(), len(old)]):
        found[begin - i : place - i] = old[begin:place]
        begin = place + 1
    return found
