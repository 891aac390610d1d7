"""`Shelf`: the items of a live catalogue in memory, as columns that requests filter and search by.

Not safe to change from several threads; `LiveCatalogue` guards it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

import numpy as np

from catalex.serving.items import Item, Selection
from catalex.serving.titles import Titles
from catalex.types import Bools, Codes, Doubles, Ints

ROOM = 1024
"""Numbers that columns have room for at first; they double when it is used up."""
MASKS = 64
"""Masks of recent selections that are remembered until the next change."""


class Shelf:
    """Items by number and by key.

    Attributes:
        levels: L, codes of an identifier.
    """

    def __init__(self, levels: int) -> None:
        self.levels = levels
        self._items: list[Item | None] = []
        self.titles = Titles(self._items)
        self._numbers: dict[str, int] = {}
        self._former: dict[str, tuple[int, ...]] = {}  # identifiers of removed items by key
        self._live: Bools = np.zeros(ROOM, bool)
        self._in_stock: Bools = np.zeros(ROOM, bool)
        self._codes: Codes = np.zeros((ROOM, levels), np.int32)
        self._categories: dict[str, set[int]] = {}
        self._attributes: dict[str, Doubles] = {}
        self._masks: OrderedDict[Selection, Bools] = OrderedDict()

    def __len__(self) -> int:
        return int(self._live.sum())

    def __iter__(self) -> Iterator[Item]:
        return (item for item in list(self._items) if item is not None)

    @property
    def size(self) -> int:
        """One past the highest number."""
        return len(self._items)

    def get(self, key: str) -> Item | None:
        """The item of a key."""
        number = self._numbers.get(key)
        return None if number is None else self._items[number]

    def numbered(self, number: int) -> Item | None:
        """The item of a number."""
        return self._items[number] if 0 <= number < len(self._items) else None

    def identifier(self, key: str) -> tuple[int, ...] | None:
        """The identifier that an item has, or had before it was removed."""
        item = self.get(key)
        return self._former.get(key) if item is None else item.identifier

    # --- changing -------------------------------------------------------------------------------------------

    def put(self, item: Item) -> None:
        """Take in an item, or its new state."""
        old = self.numbered(item.number)
        if old is not None:
            self._forget(old)
        self._grow(item.number + 1)
        number = item.number
        self._items[number] = item
        if old is None or old.title != item.title:
            self.titles.changed(number)
        self._numbers[item.key] = number
        self._live[number], self._in_stock[number] = True, item.in_stock
        self._codes[number] = item.identifier
        for name in item.categories:
            self._categories.setdefault(name, set()).add(number)
        for name, value in item.attributes.items():
            if name not in self._attributes:
                self._attributes[name] = np.full(len(self._live), np.nan)
            self._attributes[name][number] = value
        self._masks.clear()

    def drop(self, number: int) -> Item | None:
        """Take an item out; its number stays without one."""
        self._grow(number + 1)
        item = self._items[number]
        if item is None:
            return None
        self._forget(item)
        self._items[number] = None
        self.titles.changed(number)
        self._live[number] = False
        if self._numbers.get(item.key) == number:
            del self._numbers[item.key]
            self._former[item.key] = item.identifier
        self._masks.clear()
        return item

    def remember(self, number: int, key: str, identifier: tuple[int, ...]) -> None:
        """Note an item that was removed before this process began."""
        self._grow(number + 1)
        self._former[key] = identifier

    def _forget(self, item: Item) -> None:
        for name in item.categories:
            self._categories[name].discard(item.number)
            if not self._categories[name]:
                del self._categories[name]
        for name in item.attributes:
            self._attributes[name][item.number] = np.nan

    def _grow(self, size: int) -> None:
        missing = size - len(self._items)
        if missing > 0:
            self._items.extend([None] * missing)
        more = max(size, 2 * len(self._live)) - len(self._live)
        if size > len(self._live):
            self._live = np.concatenate([self._live, np.zeros(more, bool)])
            self._in_stock = np.concatenate([self._in_stock, np.zeros(more, bool)])
            self._codes = np.concatenate([self._codes, np.zeros((more, self.levels), np.int32)])
            for name, column in self._attributes.items():
                self._attributes[name] = np.concatenate([column, np.full(more, np.nan)])

    # --- asking ---------------------------------------------------------------------------------------------

    def owned(self) -> Codes:
        """``(n, L)`` identifiers of all items."""
        found: Codes = self._codes[: self.size][self._live[: self.size]]
        return found

    def under(self, positions: Sequence[int], codes: Sequence[int]) -> Ints:
        """``(n,)`` ascending numbers of the items that have these codes at these positions."""
        inside = self._live[: self.size].copy()
        for position, code in zip(positions, codes, strict=True):
            inside &= self._codes[: self.size, position] == code
        return np.flatnonzero(inside)

    def codes(self, numbers: Ints) -> Codes:
        """``(n, L)`` identifiers of items by number."""
        return self._codes[numbers]

    def items_under(self, prefix: Sequence[int], limit: int | None = None) -> list[Item]:
        """Items whose identifier begins with the codes of `prefix`, by number."""
        found = [self._items[number] for number in self.under(range(len(prefix)), prefix)[:limit].tolist()]
        return [item for item in found if item is not None]

    def branches(self, prefix: Sequence[int]) -> dict[int, int]:
        """Codes that follow `prefix`, ascending, with the number of items below each."""
        if len(prefix) == self.levels:
            return {}
        below = self._codes[self.under(range(len(prefix)), prefix), len(prefix)]
        codes, counts = np.unique(below, return_counts=True)
        return dict(zip(codes.tolist(), counts.tolist(), strict=True))

    def nearest(self, identifier: Sequence[int], limit: int) -> list[Item]:
        """Items that share the longest beginnings with an identifier, those that share more first."""
        found: dict[int, Item] = {}
        for depth in range(len(identifier), -1, -1):
            for item in self.items_under(identifier[:depth], limit + len(found)):
                found.setdefault(item.number, item)
            if len(found) >= limit:
                break
        return list(found.values())[:limit]

    def allowed(self, selection: Selection, size: int) -> Bools:
        """``(size,)`` whether each number is an item that is wanted. Not to be written into."""
        mask = self._masks.get(selection)
        if mask is None or len(mask) != size:
            mask = self._mask(selection, size)
            self._masks[selection] = mask
            while len(self._masks) > MASKS:
                self._masks.popitem(last=False)
        return mask

    def _mask(self, selection: Selection, size: int) -> Bools:
        self._grow(size)
        mask = self._live[:size].copy()
        if selection.in_stock:
            mask &= self._in_stock[:size]
        if selection.categories:
            inside = np.zeros(size, bool)
            for name in selection.categories:
                members = self._categories.get(name, set())
                inside[np.fromiter(members, np.int64, len(members))] = True
            mask &= inside
        for name, least, largest in selection.ranges:
            values = self._attributes.get(name)
            if values is None:
                return np.zeros(size, bool)
            # comparisons with NaN, an item without the attribute, are false
            if least is None and largest is None:
                mask &= ~np.isnan(values[:size])
            if least is not None:
                mask &= values[:size] >= least
            if largest is not None:
                mask &= values[:size] <= largest
        return mask

    def categories(self) -> dict[str, int]:
        """Names of all categories with the number of their items, the largest first."""
        counts = {name: len(members) for name, members in self._categories.items()}
        return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))

    def attribute_counts(self) -> dict[str, int]:
        """Names of all attributes that an item has, with the number of their items, the largest first."""
        counts = {name: int((~np.isnan(values)).sum()) for name, values in self._attributes.items()}
        return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))

    def attribute_ranges(self) -> dict[str, tuple[float, float]]:
        """Names of all attributes that an item has, with the least and the largest value."""
        found = {}
        for name, values in sorted(self._attributes.items()):
            present = values[~np.isnan(values)]
            if len(present):
                found[name] = (float(present.min()), float(present.max()))
        return found
