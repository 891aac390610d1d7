"""Cosines between a vector and every identifier of a catalogue, for catalogues of any size.

Most tokenizers decode an identifier to the sum of one vector a code (residual and product quantizers: the
normalisation before them is affine too). Then nothing is kept of an item but the length of its vector: the
inner product with a query is a sum of L numbers from tables that are made for the query (asymmetric distance
computation, Jégou et al. 2011, section 3), a hundredth of the memory and of the time that vectors take.
Whether it is so is tried out. Other tokenizers, such as those with a decoder network, have their vectors
kept, each decoded once: the identifier of a number never changes.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from catalex.tokenizers.base import Tokenizer
from catalex.types import Codes, Doubles, Floats, Ints

TRIED = 64
"""Random identifiers that have to be decoded to the sum of their parts."""
TOLERANCE = 1e-4
"""Of the sum, relative to the longest vector tried: what float32 leaves uncertain."""
BLOCK = 8192
"""Identifiers that are decoded at once."""
PAIRS = 2**20
"""Inner products of the code vectors of two levels that are kept, at most; 8 MiB."""


class Closeness(Protocol):
    """Compares with all identifiers of a catalogue; not for several threads at once."""

    def learn(self, codes: Codes, numbers: Ints) -> None:
        """Take in the items ``(n,)`` whose identifiers are ``codes (n, L)``, those that it knows included."""

    def cosines(self, codes: Codes, numbers: Ints, vector: Floats) -> Floats:
        """``(n,)`` cosines of items that were learned to a unit vector ``(D,)``."""


def closeness_of(tokenizer: Tokenizer) -> Closeness:
    """The cheapest that is exact for a tokenizer."""
    sizes = tokenizer.space.sizes
    origin: Floats = tokenizer.decode(np.zeros((1, len(sizes)), np.int32))[0]
    books = []
    for level, size in enumerate(sizes):
        single = np.zeros((size, len(sizes)), np.int32)
        single[:, level] = np.arange(size)
        books.append(tokenizer.decode(single) - origin)
    random = np.random.default_rng(0)
    codes = np.stack([random.integers(0, size, TRIED) for size in sizes], 1).astype(np.int32)
    whole = tokenizer.decode(codes)
    summed = origin + sum(book[codes[:, level]] for level, book in enumerate(books))
    longest = float(np.linalg.norm(whole, axis=1).max(initial=1e-9))
    if float(np.linalg.norm(whole - summed, axis=1).max(initial=0)) <= TOLERANCE * longest:
        return Summed(origin, books)
    return Decoded(tokenizer)


class Summed:
    """For identifiers whose vector is ``origin (D,)`` and one row of each of L ``books (K, D)``."""

    def __init__(self, origin: Floats, books: list[Floats]) -> None:
        self.origin, self.books = origin.astype(np.float64), [book.astype(np.float64) for book in books]
        self._norms: Doubles = np.zeros(0)  # by number; 0 for unknown ones
        self._own: list[Doubles] = [(book**2).sum(1) + 2 * book @ self.origin for book in self.books]
        self._products: dict[tuple[int, int], Doubles] | None = {}
        for level, book in enumerate(self.books):
            for other in range(level):
                if self._products is not None and len(book) * len(self.books[other]) <= PAIRS:
                    self._products[other, level] = 2 * self.books[other] @ book.T
                else:
                    self._products = None

    def learn(self, codes: Codes, numbers: Ints) -> None:
        self._norms = _with_room(self._norms, numbers)
        fresh = np.flatnonzero(self._norms[numbers] == 0)
        for start in range(0, len(fresh), BLOCK):
            places = fresh[start : start + BLOCK]
            self._norms[numbers[places]] = np.sqrt(np.maximum(self._squares(codes[places]), 1e-24))

    def _squares(self, codes: Codes) -> Doubles:
        """``(n,)`` squared lengths: sums over the levels and over their pairs, where tables of the pairs are
        small."""
        found: Doubles
        if self._products is None:
            rows = self.origin + sum(book[codes[:, level]] for level, book in enumerate(self.books))
            found = (rows**2).sum(1)
            return found
        found = np.full(len(codes), self.origin @ self.origin)
        for level, own in enumerate(self._own):
            found += own[codes[:, level]]
        for (one, other), products in self._products.items():
            found += products[codes[:, one], codes[:, other]]
        return found

    def cosines(self, codes: Codes, numbers: Ints, vector: Floats) -> Floats:
        found = np.full(len(codes), self.origin @ vector)
        for level, book in enumerate(self.books):
            found += (book @ vector.astype(np.float64))[codes[:, level]]
        cosines: Floats = (found / self._norms[numbers]).astype(np.float32)
        return cosines


class Decoded:
    """For any tokenizer: unit vectors ``(size, D)`` by number."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._rows: Floats | None = None
        self._known = np.zeros(0, bool)

    def learn(self, codes: Codes, numbers: Ints) -> None:
        self._known = _with_room(self._known, numbers)
        fresh = np.flatnonzero(~self._known[numbers])
        for start in range(0, len(fresh), BLOCK):
            places = fresh[start : start + BLOCK]
            rows = unit(self.tokenizer.decode(codes[places]))
            if self._rows is None:
                self._rows = np.zeros((0, rows.shape[1]), np.float32)
            self._rows = _with_room(self._rows, numbers)
            self._rows[numbers[places]] = rows
        self._known[numbers[fresh]] = True

    def cosines(self, codes: Codes, numbers: Ints, vector: Floats) -> Floats:
        if self._rows is None or not len(numbers):
            return np.zeros(len(numbers), np.float32)
        if 2 * len(numbers) < len(self._rows):
            few: Floats = self._rows[numbers] @ vector
            return few
        all_of_them: Floats = self._rows @ vector  # gathering rows would cost more than the product
        return all_of_them[numbers]


def unit(rows: Floats) -> Floats:
    """Rows of length 1; zeros stay."""
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    found: Floats = (rows / np.maximum(norms, 1e-12)).astype(np.float32)
    return found


def _with_room(column: Any, numbers: Ints) -> Any:
    """A column by number that is long enough for some numbers; grows by half, with zeros."""
    size = int(numbers.max(initial=-1)) + 1
    if size <= len(column):
        return column
    more = max(size, 3 * len(column) // 2) - len(column)
    return np.concatenate([column, np.zeros((more, *column.shape[1:]), column.dtype)])
