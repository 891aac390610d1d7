"""Conflict handling: from codes, which several items may share, to identifiers, which are unique.

Reassignment is UTGRec's rule (2504.04405, section on conflict handling) in a deterministic form: of the items
that share an identifier the one closest to it keeps it, every other takes the nearest free identifier under
the same prefix; where a prefix is full, the code before the last is changed in the same way, and so on
upwards. Distances come from `Tokenizer.distances` alone, so every tokenizer is served.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from catalex.errors import lookup, user_error
from catalex.tokenizers.base import CodeSpace, Tokenizer
from catalex.types import Bools, Codes, Floats, Ints

Method = Literal["reassign", "digit", "none"]
METHODS: dict[str, str] = {
    "reassign": "move conflicting items to the nearest free identifier (UTGRec)",
    "digit": "append a number that tells conflicting items apart (TIGER)",
    "none": "leave conflicts; identifiers are not unique",
}
DIGITS = 256
"""Size of the extra level of method "digit" (TIGER)."""
CHUNK = 8192
"""Items whose distances are held at once."""


def resolve(
    tokenizer: Tokenizer,
    vectors: Floats,
    codes: Codes,
    *,
    method: Method = "reassign",
    reserved: Codes | None = None,
) -> Codes:
    """Identifiers ``(N, L)``, with "digit" ``(N, L + 1)``, from the codes ``(N, L)`` of vectors ``(N, D)``.

    Items without conflict are unchanged. The result does not depend on the order of the items except among
    items at exactly equal distance, where the lower index goes first.

    Args:
        tokenizer: Gives the distances.
        vectors: Content vectors of the items of one domain.
        codes: Their codes, as `Tokenizer.encode` gave them.
        method: One of `METHODS`.
        reserved: ``(R, L)``, with "digit" ``(R, L + 1)``: identifiers that items of the domain own already.
            They are never given away, and no item that owns one moves.

    Raises:
        CatalexError: More items than identifiers; or, with "digit", a group larger than `DIGITS`.
    """
    lookup(METHODS, method, "conflict method")
    codes = np.array(codes, dtype=np.int32)
    space = space_after(tokenizer.space, method)
    owned = np.zeros((0, space.levels), np.int32) if reserved is None else np.array(reserved, dtype=np.int32)
    if method == "none":
        return codes
    if method == "digit":
        return _append_digit(codes, owned)
    check_room(space, len(codes) + len(owned), method, "conflict handling")
    order = list(tokenizer.order)  # the code chosen last moves first, wherever the identifier writes it
    sizes = [space.sizes[position] for position in order]
    found = np.empty_like(codes)
    found[:, order] = _reassign(tokenizer, vectors, codes[:, order], owned[:, order], sizes)
    return found


def space_after(space: CodeSpace, method: Method) -> CodeSpace:
    """The levels of the identifiers that a method makes of codes in `space`."""
    if method != "digit":
        return space
    return CodeSpace((*space.sizes, DIGITS), (*space.groups, max(space.groups) + 1))


def check_room(space: CodeSpace, items: int, method: Method, place: str) -> None:
    """Refuse a catalogue that has more items than there are identifiers. Asked before a tokenizer is trained.

    Raises:
        CatalexError: When "reassign" could not give every item one of the codes in `space`.
    """
    if method == "reassign" and items > math.prod(space.sizes):
        raise user_error(
            "there are more items than identifiers",
            place=place,
            value=items,
            allowed=f"at most {math.prod(space.sizes)}",
            remedy="use more levels or a larger codebook_size",
        )


# --- digit ----------------------------------------------------------------------------------------


def _append_digit(codes: Codes, reserved: Codes) -> Codes:
    """Number the items of each group by index, after the largest digit that `reserved` has for the group."""
    both = np.concatenate([reserved[:, : codes.shape[1]], codes])
    group = np.unique(both, axis=0, return_inverse=True)[1].ravel() if len(both) else np.zeros(0, np.int64)
    first = np.zeros(int(group.max()) + 1 if len(group) else 0, np.int64)
    old, new = group[: len(reserved)], group[len(reserved) :]
    np.maximum.at(first, old, reserved[:, -1].astype(np.int64) + 1)
    order = np.argsort(new, kind="stable")
    starts = np.flatnonzero(np.diff(new[order], prepend=-1))
    within = np.arange(len(new)) - np.repeat(starts, np.diff(starts, append=len(new)))
    digits = np.empty(len(new), np.int64)
    digits[order] = within
    digits += first[new]
    if len(digits) and digits.max() >= DIGITS:
        worst = int(digits.argmax())
        raise user_error(
            f"more than {DIGITS} items share the codes {tuple(codes[worst].tolist())}",
            place="conflict handling with method 'digit'",
            value=int((group == new[worst]).sum()),
            allowed=f"at most {DIGITS} items a group",
            remedy="use method 'reassign', more levels or a larger codebook_size",
        )
    return np.concatenate([codes, digits[:, None].astype(np.int32)], axis=1)


# --- reassignment ---------------------------------------------------------------------------------


def _reassign(
    tokenizer: Tokenizer, vectors: Floats, codes: Codes, reserved: Codes, sizes: Sequence[int]
) -> Codes:
    """Unique identifiers ``(N, L)``; see `resolve`. Here all codes stand in `Tokenizer.order`."""
    movers, priority = _movers(tokenizer, vectors, codes, reserved, sizes)
    identifiers = codes.copy()
    stays = np.ones(len(codes), bool)
    stays[movers] = False
    owners = _Owners(sizes, np.concatenate([reserved, codes[stays]]))
    left = movers
    for depth in range(len(sizes) - 1, -1, -1):
        if not len(left):
            break
        order = _sorted_by(owners.keys(codes[left, :depth]), priority[left], left)
        placed, left = owners.split(left[order], codes[left[order], :depth])
        _descend(tokenizer, vectors, identifiers, placed, priority, depth, owners)
    return identifiers


def _movers(
    tokenizer: Tokenizer, vectors: Floats, codes: Codes, reserved: Codes, sizes: Sequence[int]
) -> tuple[Ints, Floats]:
    """Items that cannot keep their codes, and ``(N,)`` the distance of every conflicting item to its
    codes."""
    keys = _keys(codes, sizes)
    taken = np.isin(keys, _keys(reserved, sizes))
    group, counts = np.unique(keys, return_inverse=True, return_counts=True)[1:]
    conflicting = np.flatnonzero((counts[group] > 1) | taken)
    priority = np.zeros(len(codes), np.float32)
    for start in range(0, len(conflicting), CHUNK):
        rows = conflicting[start : start + CHUNK]
        distances = tokenizer.distances(vectors[rows], codes[rows, :-1])
        priority[rows] = distances[np.arange(len(rows)), codes[rows, -1]]
    order = conflicting[np.lexsort((conflicting, priority[conflicting], keys[conflicting]))]
    first = np.diff(keys[order], prepend=-1) != 0
    return order[~first | taken[order]], priority


def _descend(
    tokenizer: Tokenizer,
    vectors: Floats,
    identifiers: Codes,
    items: Ints,
    priority: Floats,
    depth: int,
    owners: _Owners,
) -> None:
    """Give `items` the nearest codes from level `depth` on that still lead to a free identifier.

    Level by level, all items at once: as if those with equal prefixes chose in turn, the one closest to its
    first codes first. A code is open while fewer items chose it than identifiers are free below it.
    """
    for level in range(depth, identifiers.shape[1]):
        items = items[_sorted_by(owners.keys(identifiers[items, :level]), priority[items], items)]
        room = _Room(owners, level)
        for start in range(0, len(items), CHUNK):
            rows = items[start : start + CHUNK]
            distances = tokenizer.distances(vectors[rows], identifiers[rows, :level])
            identifiers[rows, level] = room.share(owners.keys(identifiers[rows, :level]), distances)
    owners.add(identifiers[items])


def _sorted_by(prefixes: Ints, priority: Floats, items: Ints) -> Ints:
    """Order by the prefixes' keys, then distance, then index."""
    return np.lexsort((items, priority, prefixes))


def _keys(codes: Codes, sizes: Sequence[int]) -> Ints:
    """``(N,)`` one integer for each identifier or prefix, in lexicographic order."""
    if math.prod(sizes) >= 2**63:
        raise user_error(
            "the code space is too large for conflict handling", place="conflict handling", value=tuple(sizes)
        )
    keys = np.zeros(len(codes), np.int64)
    for level in range(codes.shape[1]):
        keys = keys * sizes[level] + codes[:, level]
    return keys


class _Owners:
    """Which identifiers are owned, and how many are still free below each prefix."""

    def __init__(self, sizes: Sequence[int], owned: Codes) -> None:
        self.sizes = tuple(sizes)
        self._owned = _sorted_set(_keys(owned, sizes))

    def keys(self, prefixes: Codes) -> Ints:
        """``(N,)`` integers that stand for prefixes ``(N, l)``."""
        return _keys(prefixes, self.sizes)

    def below(self, level: int) -> int:
        """Identifiers under a prefix of `level` codes, free or not."""
        return math.prod(self.sizes[level:])

    def count(self, keys: Ints, level: int) -> Ints:
        """Owned identifiers under each of the prefixes of `level` codes."""
        span = self.below(level)
        ends = np.searchsorted(self._owned, (keys + 1) * span)
        found: Ints = ends - np.searchsorted(self._owned, keys * span)
        return found

    def children(self, prefixes: Ints, level: int) -> Ints:
        """``(P, K)`` owned identifiers under each code that may follow prefixes ``(P,)`` of `level` codes,
        given as keys."""
        span, size = self.below(level), self.sizes[level]
        starts = np.searchsorted(self._owned, prefixes * span)
        counts = np.searchsorted(self._owned, (prefixes + 1) * span) - starts
        place = np.repeat(np.arange(len(prefixes)), counts)
        within = np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts)
        child = self._owned[starts[place] + within] // self.below(level + 1) % size
        return np.bincount(place * size + child, minlength=len(prefixes) * size).reshape(-1, size)

    def add(self, identifiers: Codes) -> None:
        """Note new owners."""
        self._owned = _sorted_set(np.concatenate([self._owned, self.keys(identifiers)]))

    def split(self, items: Ints, prefixes: Codes) -> tuple[Ints, Ints]:
        """The items, sorted by prefix, that find room under their prefix, and those that do not."""
        keys = self.keys(prefixes)
        fits = _rank(keys) < self.below(prefixes.shape[1]) - self.count(keys, prefixes.shape[1])
        return items[fits], items[~fits]


class _Room:
    """Room below the codes of one level, while items that are sorted by prefix choose chunk after chunk."""

    def __init__(self, owners: _Owners, level: int) -> None:
        self._owners, self._level = owners, level
        self._last = -1
        """Key of the prefix that the latest chunk ended with, which may go on in the next one."""
        self._left: Ints = np.zeros(0, np.int64)

    def share(self, prefixes: Ints, distances: Floats) -> Ints:
        """``(R,)`` the nearest code that has room for it left, for items in the order of their turn.

        Where no code of a prefix has more takers than room, all of them choose at once; the others choose one
        after the other.

        Args:
            prefixes: ``(R,)`` keys, ascending.
            distances: ``(R, K)``; ties to the lowest code.
        """
        present, group = np.unique(prefixes, return_inverse=True)
        free = self._owners.below(self._level + 1) - self._owners.children(present, self._level)
        if present[0] == self._last:
            free[0] = self._left
        codes: Ints = np.where(free[group] > 0, distances, np.inf).argmin(1)
        takers = np.bincount(group * free.shape[1] + codes, minlength=free.size).reshape(free.shape)
        crowded: Bools = np.logical_or.reduce(takers > free, axis=1)
        free[~crowded] -= takers[~crowded]
        before, room, shut = -1, free[0], np.zeros(0, np.float32)
        for row in np.flatnonzero(crowded[group]).tolist():
            if group[row] != before:
                before, room = group[row], free[group[row]]
                shut = np.where(room > 0, np.float32(0), np.float32(np.inf))
            code = codes[row] = (distances[row] + shut).argmin()
            room[code] -= 1
            if not room[code]:
                shut[code] = np.inf
        self._last, self._left = int(present[-1]), free[-1]
        return codes


def _rank(keys: Ints) -> Ints:
    """``(N,)`` number of each sorted key among its equals, from 0."""
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    rank: Ints = np.arange(len(keys)) - np.repeat(starts, np.diff(starts, append=len(keys)))
    return rank


def _sorted_set(keys: Ints) -> Ints:
    """Keys ``(N,)`` ascending, each once. NumPy's `unique` hashes integers first, which takes longer."""
    keys = np.sort(keys)
    once: Ints = keys[np.diff(keys, prepend=-1) != 0]
    return once
