"""Nearest items by content, and the code tree: what the identifiers of a live catalogue say about it.

Vectors are those that the tokenizer makes of the identifiers (`Tokenizer.decode`), see `closeness`. A text is
compared by the vector that the encoder makes of it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from catalex.errors import CatalexError
from catalex.features.base import ItemContent
from catalex.serving.catalogue import LiveCatalogue
from catalex.serving.closeness import Closeness, closeness_of, unit
from catalex.serving.items import Item, NewItem, Selection
from catalex.types import Codes, Floats, Ints

SPARE = 8
"""Further items that are looked up, for those that leave meanwhile."""
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
    """

    revision: int
    codes: Codes
    numbers: Ints


class Neighbourhood:
    """Nearest items and paths of one catalogue; follows its changes when it is asked."""

    def __init__(self, catalogue: LiveCatalogue) -> None:
        self.catalogue = catalogue
        self._lock = threading.Lock()
        self._state: _State | None = None
        self._closeness: Closeness | None = None
        self._refusal: CatalexError | None = None
        self._levels = catalogue.vocabulary.space.levels
        if (catalogue.bundle.folder / "tokenizer").is_dir():
            tokenizer = catalogue.reader.tokenizer
            try:
                self._closeness, self._levels = closeness_of(tokenizer), tokenizer.space.levels
            except CatalexError as error:  # it cannot decode; everything else can be served
                self._refusal = error

    def prepare(self) -> None:
        """Do what the first request would wait for: seconds where there are a million items."""
        self._present()

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
        return self._nearest(unit(vector), k, selection)

    def _nearest(self, vector: Floats, k: int, selection: Selection) -> list[tuple[Item, float]]:
        if self._refusal is not None:
            raise self._refusal
        state = self._present()
        numbers = state.numbers
        cosines = self._cosines(state, np.arange(len(numbers)), vector)
        if selection:
            wanted = self.catalogue.allowed(selection)
            places = np.flatnonzero(wanted[numbers])
        else:
            places = np.arange(len(numbers))
        found: list[tuple[Item, float]] = []
        for place in places[_best(cosines[places], k + SPARE)].tolist():
            item = self.catalogue.numbered(int(numbers[place]))
            if item is not None and selection.allows(item):
                found.append((item, float(cosines[place])))
        return found[:k]

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
        cosines = self._cosines(state, places, self._vector(identifier))
        places = places[_best(cosines, 2 * count)]
        items = (self.catalogue.numbered(int(state.numbers[place])) for place in places)
        return [item for item in items if item is not None][:count]

    # --- parts ----------------------------------------------------------------------------------------------

    def _present(self) -> _State:
        """The state of the present revision."""
        state = self._state
        if state is not None and state.revision == self.catalogue.revision:
            return state
        with self._lock:
            revision = self.catalogue.revision
            state = self._state
            if state is None or state.revision != revision:
                tokens, numbers = self.catalogue.engine.trie.rows()
                codes = self.catalogue.vocabulary.codes(tokens.astype(np.int64))
                if self._closeness is not None:
                    self._closeness.learn(codes[:, : self._levels], numbers)
                self._state = state = _State(revision, codes, numbers)
            return state

    def _cosines(self, state: _State, places: Ints, vector: Floats) -> Floats:
        """``(m,)`` cosines of some items of a state; zeros where no tokenizer can tell."""
        if self._closeness is None:
            return np.zeros(len(places), np.float32)
        if len(places) < len(state.numbers):
            codes, numbers = state.codes[places], state.numbers[places]
        else:
            codes, numbers = state.codes, state.numbers
        with self._lock:
            return self._closeness.cosines(codes[:, : self._levels], numbers, vector)

    def _vector(self, identifier: Sequence[int]) -> Floats:
        """``(D,)`` unit vector of an identifier; empty where there is no tokenizer."""
        if self._closeness is None:
            return np.zeros(0, np.float32)
        codes = np.array([identifier], np.int32)[:, : self._levels]
        vector: Floats = unit(self.catalogue.reader.tokenizer.decode(codes))[0]
        return vector


def _best(values: Floats, count: int) -> Ints:
    """Places of the largest values, largest first, of equal ones the first."""
    if count >= len(values):
        return np.argsort(-values, kind="stable")
    least = np.partition(values, len(values) - count)[len(values) - count]
    places = np.flatnonzero(values >= least)
    return places[np.argsort(-values[places], kind="stable")][:count]
