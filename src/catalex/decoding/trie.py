"""`Trie`: the index of a catalogue's valid identifiers, as token ids.

The identifiers, sorted, are cut into levels. Level l has one node for each distinct prefix of l tokens,
numbered in the order of the prefixes, so the children of a node are a range of consecutive nodes of the next
level:

====================  =======================================================================
``level.starts[p]``   first child of node p of the level above; ``starts[p + 1]`` ends the range
``level.tokens[n]``   last token of the prefix of node n
``items[n]``          item of leaf n (a leaf is a node of level L)
====================  =======================================================================

Nothing else is stored: a node's number is its edge's number. Tokens take two bytes where the vocabulary
allows, so one million random identifiers of four tokens take about 12 bytes each, and four more for the way
back from an item to its leaf once a search excludes items by number. The arrays are replaced as a whole when
items come or go, never altered, so that a search which began before a change ends on the index it began with.
How they are made and changed is in `levels`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from catalex.decoding.levels import Levels, Small, cut, duplicate, expand, find, with_rows, without_leaves
from catalex.errors import user_error
from catalex.types import Ints

ABSENT = -1
"""Item of an identifier that is not in the catalogue; also fills a ranking which ends early."""

REBUILD = 8
"""The arrays are cut anew when the items that come are more than one in so many of those that are there."""


@dataclass(frozen=True)
class DeviceLevel:
    """A `Level` as tensors (tokens int16 or int32, starts int32), with the largest number of children that a
    node of the level above has."""

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

    @cached_property
    def leaves(self) -> Tensor:
        """``(size,)`` int32 leaf of each item id, `ABSENT` for removed ones; made when first asked for."""
        places = torch.full((self.size,), ABSENT, dtype=torch.int32, device=self.items.device)
        places[self.items.long()] = torch.arange(len(self.items), dtype=torch.int32, device=self.items.device)
        return places


@dataclass(frozen=True)
class _Index:
    """One state of a `Trie`. Replaced as a whole: another thread never sees half of two states."""

    arrays: Levels
    size: int
    highest_token: int
    copies: dict[torch.device, DeviceTrie] = field(default_factory=dict)


class Trie:
    """Identifiers of one catalogue, growable; item i is row i of the tokens it was built from.

    Args:
        tokens: ``(N, L)`` integers above 0 (0 is padding), rows distinct. N may be 0 for a catalogue that
            starts empty.
        items: ``(N,)`` distinct item ids of the rows, for a catalogue that has lost some; default: 0..N-1.

    Raises:
        CatalexError: When two rows are equal, a token is not positive, or the array is not two-dimensional
            integers.
    """

    def __init__(self, tokens: NDArray[Any], items: Ints | None = None) -> None:
        rows = _checked(tokens, None)
        ids = np.arange(len(rows)) if items is None else np.asarray(items, np.int64)
        self.length = rows.shape[1]
        size = int(ids.max(initial=-1)) + 1
        self._index = _Index(cut(rows, ids), size, int(rows.max(initial=0)))

    def __len__(self) -> int:
        """Number of items that can be decoded (removed ones are not counted)."""
        return len(self._index.arrays.items)

    def __contains__(self, identifier: Sequence[int]) -> bool:
        """Whether the L tokens are the identifier of an item."""
        row = np.asarray(identifier)
        return row.shape == (self.length,) and bool(self.item_of(row[None])[0] != ABSENT)

    @property
    def nbytes(self) -> int:
        """Bytes of the index, with the way back from items to leaves where a search has asked for it."""
        index = self._index
        back = [copy.leaves.nbytes for copy in index.copies.values() if "leaves" in vars(copy)]
        return index.arrays.nbytes + max(back, default=0)

    @property
    def size(self) -> int:
        """Item ids given so far, those of removed items included: the width of an item mask."""
        return self._index.size

    @property
    def active(self) -> NDArray[np.bool_]:
        """``(size,)`` whether each item id given so far can be decoded."""
        index = self._index
        active = np.zeros(index.size, bool)
        active[index.arrays.items] = True
        return active

    def item_of(self, tokens: NDArray[Any]) -> Ints:
        """``(n,)`` item of each row of ``tokens (n, L)``, `ABSENT` where no item has it."""
        rows, arrays = np.asarray(tokens), self._index.arrays
        *_, (place, there) = find(arrays, rows)
        items = np.full(len(rows), ABSENT, np.int64)
        found = np.flatnonzero(there)
        items[found] = arrays.items[place[found]]
        return items

    def rows(self) -> tuple[Small, Ints]:
        """``(n, L)`` tokens of the n items that can be decoded, in sorted order, and their ``(n,)`` items."""
        return expand(self._index.arrays)

    def add(self, tokens: NDArray[Any], items: Ints | None = None) -> None:
        """Give the next item ids to the rows of ``tokens (n, L)``. No other item changes.

        Few items cost one pass over the arrays, without a sort; many cost what building anew costs.

        Args:
            tokens: Their identifiers.
            items: ``(n,)`` distinct ids in place of the next ones, for a caller who gives out the ids; none
                may be that of an item in the index.

        Raises:
            CatalexError: When a row is not valid, occurs twice, or is the identifier of an item.
        """
        new = _checked(tokens, self.length)
        taken = np.flatnonzero(self.item_of(new) != ABSENT)
        if len(taken):
            raise duplicate(new[taken[0]])
        index = self._index
        ids = np.arange(index.size, index.size + len(new)) if items is None else np.asarray(items, np.int64)
        size = max(index.size, int(ids.max(initial=-1)) + 1)
        if len(new) * REBUILD > len(index.arrays.items):
            old, items = expand(index.arrays)
            arrays = cut(np.concatenate([old, new]), np.concatenate([items, ids]))
        else:
            arrays = with_rows(index.arrays, new, ids)
        highest = max(index.highest_token, int(new.max(initial=0)))
        self._index = _Index(arrays, size, highest)

    def remove(self, items: Sequence[int] | NDArray[Any]) -> None:
        """Take items out of the index. Their ids stay unused, their identifiers are free again.

        Raises:
            CatalexError: When an id is not that of an item in the index.
        """
        index = self._index
        gone = np.unique(np.asarray(items, dtype=np.int64))
        outside = (gone < 0) | (gone >= index.size)
        marked = np.zeros(index.size, bool)
        marked[gone[~outside]] = True
        leaves = np.flatnonzero(marked[index.arrays.items])
        if len(leaves) < len(gone):
            marked[index.arrays.items[leaves]] = False
            missing = gone[outside | marked[np.where(outside, 0, gone)]]
            raise user_error("the item is not in the index", place="items to remove", value=int(missing[0]))
        arrays = without_leaves(index.arrays, leaves)
        highest = max(int(level.tokens.max(initial=0)) for level in arrays.levels)
        self._index = _Index(arrays, index.size, highest)

    def to(self, device: torch.device | str) -> DeviceTrie:
        """The index as tensors on `device`; copied once for each state of the index."""
        device, index = torch.device(device), self._index
        if device not in index.copies:
            levels = tuple(
                DeviceLevel(
                    torch.from_numpy(level.tokens).to(device),
                    torch.from_numpy(level.starts).to(device),
                    level.fan_out,
                )
                for level in index.arrays.levels
            )
            items = torch.from_numpy(index.arrays.items).to(device)
            index.copies[device] = DeviceTrie(levels, items, index.size, index.highest_token)
        return index.copies[device]


def _checked(tokens: NDArray[Any], length: int | None) -> NDArray[Any]:
    """`tokens` as integers ``(n, L)``."""
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
    return rows if rows.dtype in (np.int32, np.int64) else rows.astype(np.int64)
