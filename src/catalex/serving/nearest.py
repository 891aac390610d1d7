"""Nearest items by content, and the code tree: what the identifiers of a live catalogue say about it.

Vectors are those that the tokenizer makes of the identifiers (`Tokenizer.decode`), so nothing has to be
stored beside them and a new item costs one row. A text is compared by the vector that the encoder makes of
it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from catalex.features.base import ItemContent
from catalex.serving.catalogue import LiveCatalogue
from catalex.serving.items import Item, NewItem, Selection
from catalex.types import Codes, Floats, Ints

CANDIDATES = 20_000
"""Items that are compared to find the nearest neighbours at one depth of a path, at most."""


@dataclass(frozen=True)
class Beside:
    """One depth of a path.

    Attributes:
        code: The path's code.
        size: K of the level.
        items: Items with the path's codes up to this one.
        used: Codes in use after the codes before, and their numbers of items.
        neighbours: Items that share the codes before and part here, nearest first.
    """

    code: int
    size: int
    items: int
    used: list[tuple[int, int]]
    neighbours: list[Item]


@dataclass(frozen=True)
class _State:
    """Of one revision.

    Attributes:
        codes: ``(n, L)`` identifiers of the items that are there, sorted.
        numbers: ``(n,)`` their numbers.
        vectors: ``(n, D)`` unit vectors; empty for a bundle without tokenizer.
    """

    revision: int
    codes: Codes
    numbers: Ints
    vectors: Floats


class Neighbourhood:
    """Nearest items and paths of one catalogue; follows its changes when it is asked."""

    def __init__(self, catalogue: LiveCatalogue) -> None:
        self.catalogue = catalogue
        self._lock = threading.Lock()
        self._state: _State | None = None

    # --- nearest --------------------------------------------------------------------------------------------

    def of_item(self, item: Item, k: int, selection: Selection) -> list[tuple[Item, float]]:
        """The `k` items nearest to an item, without itself, and their cosines."""
        found = self._nearest(self._vector(item.identifier), k + 1, selection)
        return [(other, cosine) for other, cosine in found if other.number != item.number][:k]

    def of_content(
        self, text: str, image: bytes | None, k: int, selection: Selection
    ) -> list[tuple[Item, float]]:
        """The `k` items nearest to a content.

        Raises:
            CatalexError: When the bundle has no tokenizer.
        """
        reader = self.catalogue.reader
        vector = reader.vectors([ItemContent(reader.text_of(NewItem("", text=text)), image)])[0]
        return self._nearest(_unit(vector), k, selection)

    def _nearest(self, vector: Floats, k: int, selection: Selection) -> list[tuple[Item, float]]:
        state = self._present()
        cosines = state.vectors @ vector
        order = np.argsort(-cosines, kind="stable")
        found: list[tuple[Item, float]] = []
        for place in order.tolist():
            item = self.catalogue.numbered(int(state.numbers[place]))
            if item is not None and (not selection or selection.allows(item)):
                found.append((item, float(cosines[place])))
                if len(found) == k:
                    break
        return found

    # --- the tree -------------------------------------------------------------------------------------------

    def path(self, identifier: Sequence[int], neighbours: int = 6) -> list[Beside]:
        """The path of an identifier, which need not be in use, from the root."""
        state, sizes = self._present(), self.catalogue.vocabulary.space.sizes
        low, high = 0, len(state.codes)
        found = []
        for level, code in enumerate(identifier):
            column = state.codes[low:high, level]
            used, counts = np.unique(column, return_counts=True)
            start = low + int(np.searchsorted(column, code, "left"))
            end = low + int(np.searchsorted(column, code, "right"))
            apart = np.concatenate([np.arange(low, start), np.arange(end, high)])
            found.append(
                Beside(
                    int(code),
                    int(sizes[level]),
                    end - start,
                    list(zip(used.tolist(), counts.tolist(), strict=True)),
                    self._closest(state, apart, identifier, neighbours),
                )
            )
            low, high = start, end
        return found

    def usage(self) -> tuple[int, list[Ints], list[Ints]]:
        """Items; of each level the items of each code; of each depth the sizes of the groups of items with
        equal first codes."""
        state, sizes = self._present(), self.catalogue.vocabulary.space.sizes
        counts = [np.bincount(state.codes[:, level], minlength=size) for level, size in enumerate(sizes)]
        differs = np.ones((len(state.codes), len(sizes)), bool)
        differs[1:] = np.maximum.accumulate(state.codes[1:] != state.codes[:-1], axis=1)
        ends = [np.append(np.flatnonzero(differs[:, level]), len(state.codes)) for level in range(len(sizes))]
        return len(state.codes), counts, [np.diff(end) for end in ends]

    def _closest(self, state: _State, places: Ints, identifier: Sequence[int], count: int) -> list[Item]:
        places = places[:: max(1, -(-len(places) // CANDIDATES))]
        if len(places) and state.vectors.shape[1]:
            cosines = state.vectors[places] @ self._vector(tuple(identifier))
            places = places[np.argsort(-cosines, kind="stable")]
        items = (self.catalogue.numbered(int(state.numbers[place])) for place in places[: 2 * count])
        return [item for item in items if item is not None][:count]

    # --- parts ----------------------------------------------------------------------------------------------

    def _present(self) -> _State:
        """The state of the present revision; rows of old identifiers are taken over."""
        state = self._state
        if state is not None and state.revision == self.catalogue.revision:
            return state
        with self._lock:
            revision = self.catalogue.revision
            tokens, numbers = self.catalogue.engine.trie.rows()
            codes = self.catalogue.vocabulary.codes(tokens.astype(np.int64))
            self._state = state = _State(revision, codes, numbers, self._vectors(codes))
            return state

    def _vectors(self, codes: Codes) -> Floats:
        """``(n, D)`` unit vectors of sorted identifiers; only those that the last state lacks are made."""
        old = self._state
        if old is None or not len(old.codes):
            return self._decode(codes)
        sizes = self.catalogue.vocabulary.space.sizes
        before, now = (_keys(rows, sizes) for rows in (old.codes, codes))
        place = np.minimum(np.searchsorted(before, now), len(before) - 1)
        kept = before[place] == now
        vectors = old.vectors[place]
        vectors[~kept] = self._decode(codes[~kept])
        return vectors

    def _vector(self, identifier: Sequence[int]) -> Floats:
        vector: Floats = self._decode(np.array([identifier], np.int32))[0]
        return vector

    def _decode(self, codes: Codes) -> Floats:
        if not (self.catalogue.bundle.folder / "tokenizer").is_dir():
            return np.zeros((len(codes), 0), np.float32)
        tokenizer = self.catalogue.reader.tokenizer
        if not len(codes):
            width = tokenizer.decode(np.zeros((1, tokenizer.space.levels), np.int32)).shape[1]
            return np.zeros((0, width), np.float32)
        return _unit(tokenizer.decode(codes[:, : tokenizer.space.levels]))


def _unit(rows: Floats) -> Floats:
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    found: Floats = (rows / np.maximum(norms, 1e-12)).astype(np.float32)
    return found


def _keys(codes: Codes, sizes: Sequence[int]) -> Ints:
    """``(n,)`` one integer an identifier, ascending for sorted ones."""
    keys = np.zeros(len(codes), np.int64)
    for level, size in enumerate(sizes):
        keys = keys * size + codes[:, level]
    return keys
