"""Places for newcomers: a share of every list is kept for items that the model was never trained on.

A model gives a new identifier next to no probability, however well its codes fit: it has learned which
identifiers exist. TIGER (2305.05065, on cold-start recommendation) therefore keeps a share epsilon of the
list for unseen items that share a prefix with what the model wrote. Here the way from the model's list to the
newcomers is content instead of a prefix, because prefixes hold too few items where the code space is wide:
with p_j the model's probability of item j, renormalised over its list, 1 added for the last item of the
history, and v the unit content vectors,

    score(new) = sum over j of (p_j + [j is last]) exp((v_new . v_j - 1) / width)

What `scripts/cold_start.py` measures says what the places bring and what they cost.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import numpy as np

from catalex.features import ItemContent
from catalex.serving.catalogue import LiveCatalogue
from catalex.serving.items import Item, Selection
from catalex.serving.seeding import bundled
from catalex.types import Bools, Doubles, Floats, Ints

SHARE = 0.1
"""Of a list (TIGER's epsilon): one place in ten, the least that a list of ten can have."""
WIDTH = 0.1
"""Of the similarity: items whose cosine is 0.1 less weigh a factor e less. 0.05 to 0.2 differed little."""
BLOCK = 256
"""Items encoded at once."""


class Newcomers:
    """Ranks the items of a catalogue that its bundle does not hold.

    Args:
        live: The catalogue.
        share: Of the places of a list; rounded down, so lists shorter than 1 / share have none.
    """

    def __init__(self, live: LiveCatalogue, *, share: float = SHARE, width: float = WIDTH) -> None:
        self.live, self.share, self.width = live, share, width
        self._known_keys = {record.key for record in bundled(live.reader)}
        self._lock = threading.Lock()
        self._known: Bools = np.zeros(0, bool)
        """By number, whether an item was met that is the bundle's."""
        self._vectors: dict[int, Floats] = {}
        self._new: tuple[int, Ints, Floats] = (-1, np.zeros(0, np.int64), np.zeros((0, 1), np.float32))

    def mix(
        self,
        best: Sequence[tuple[Item, float]],
        history: Sequence[str],
        k: int,
        selection: Selection | None = None,
    ) -> list[tuple[Item, float]]:
        """The model's list with its last places given to newcomers that are not in it yet.

        A newcomer has the score of the last item before it, so that scores still do not grow along the list.

        Args:
            best: Of the model, best first; longer lists say more about what the user wants.
            history: Keys, oldest first; those of removed or unknown items are passed over.
            k: Length of the list.
            selection: What newcomers must be.
        """
        listed = list(best[:k])
        there = sum(item.key not in self._known_keys for item, _ in listed)
        places = max(math.floor(self.share * k) - there, 0)
        seen = {item.number for item, _ in listed} | {
            item.number for key in history if (item := self.live.get(key)) is not None
        }
        found: list[Item] = []
        for number in self.ranked(best, history).tolist() if places else ():
            item = self.live.numbered(number)
            if item is None or number in seen or (selection and not selection.allows(item)):
                continue
            found.append(item)
            if len(found) == places:
                break
        kept = listed[: k - len(found)]
        score = kept[-1][1] if kept else 0.0
        return [*kept, *((item, score) for item in found)]

    def ranked(self, best: Sequence[tuple[Item, float]], history: Sequence[str]) -> Ints:
        """``(n,)`` numbers of all newcomers, best first."""
        numbers, vectors = self._present()
        last = self.live.get(history[-1]) if history else None
        seeds = [item for item, _ in best] + ([last] if last is not None else [])
        if not len(numbers) or not seeds:
            return numbers[:0]
        scores = np.array([score for _, score in best], np.float64)
        shares: Doubles = np.exp(scores - scores.max()) if len(scores) else scores
        shares = shares / shares.sum() if len(shares) else shares
        weights = np.concatenate([shares, np.ones(int(last is not None))])
        closeness = vectors @ np.stack(self._vectors_of(seeds)).T
        total = np.exp((closeness.astype(np.float64) - 1) / self.width) @ weights
        order: Ints = numbers[np.argsort(-total, kind="stable")]
        return order

    def _present(self) -> tuple[Ints, Floats]:
        """Numbers and unit vectors of the newcomers now."""
        revision = self.live.revision
        if self._new[0] != revision:
            new = self._unknown()
            rows = self._vectors_of(new)
            numbers = np.array([item.number for item in new], np.int64)
            self._new = (revision, numbers, np.stack(rows) if rows else np.zeros((0, 1), np.float32))
        return self._new[1:]

    def _unknown(self) -> list[Item]:
        """The newcomers now. A number never gets another key, so each item of the bundle is met once."""
        there = self.live.allowed(Selection()).copy()
        with self._lock:
            known = self._known[: len(there)]
            there[: len(known)] &= ~known
            self._known = np.concatenate([self._known, np.zeros(len(there) - len(known), bool)])
            found = [i for n in np.flatnonzero(there).tolist() if (i := self.live.numbered(n)) is not None]
            new = [item for item in found if item.key not in self._known_keys]
            if len(new) < len(found):
                self._known[[item.number for item in found if item.key in self._known_keys]] = True
        return new

    def _vectors_of(self, items: Sequence[Item]) -> list[Floats]:
        """Unit vectors ``(D,)``, each encoded when first asked for."""
        with self._lock:
            missing = [item for item in items if item.number not in self._vectors]
            for start in range(0, len(missing), BLOCK):
                block = missing[start : start + BLOCK]
                content = [ItemContent(item.text, self._image(item)) for item in block]
                rows = self.live.reader.vectors(content)
                rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
                self._vectors.update(zip([item.number for item in block], rows, strict=True))
            return [self._vectors[item.number] for item in items]

    def _image(self, item: Item) -> bytes | None:
        wanted = item.has_image and self.live.reader.wants_images
        return self.live.store.image(item.number) if wanted else None
