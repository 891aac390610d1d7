"""Co-occurring items: who stands next to whom in training sequences (UTGRec, arXiv 2504.04405).

The collaborative losses of UTGRec pull an item towards a *positive*: an item that some user took directly
before or after it. Items of several domains are numbered globally, one catalogue after the other: item i of
the second domain is row ``N_1 + i``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from catalex.data.histories import Histories
from catalex.errors import user_error
from catalex.types import Ints


@dataclass(frozen=True)
class Positives:
    """The neighbours of N items, each counted once however often the two met.

    A set and not a count, as in the authors' code: uniform over distinct neighbours, popular items are not
    drawn more often for being popular.

    Attributes:
        offsets: ``(N + 1,)`` row i owns ``neighbours[offsets[i]:offsets[i + 1]]``.
        neighbours: ``(M,)`` global rows, ascending within each row; never the row itself.
        trained: ``(T,)`` ascending global rows that occur in training sequences. Only these train the
            tokenizer.
    """

    offsets: Ints
    neighbours: Ints
    trained: Ints

    @classmethod
    def of(cls, training: Sequence[Histories], sizes: Sequence[int]) -> Self:
        """Collect the neighbours at distance 1 on either side, within a user's training items.

        Args:
            training: Training histories of each domain (`SplitHistories.training`), with item ids of that
                domain. What is held out must not be in them; nothing here could tell.
            sizes: Number of items of each domain's catalogue.

        Raises:
            CatalexError: When a history names an item beyond its catalogue.
        """
        total, begin = int(sum(sizes)), 0
        keys, seen = [np.zeros(0, np.int64)], np.zeros(total, bool)
        for number, (histories, size) in enumerate(zip(training, sizes, strict=True), start=1):
            _check(histories.items, size, f"domain {number} of {len(sizes)}")
            items = histories.items + begin
            seen[items] = True
            owners = np.repeat(np.arange(len(histories)), histories.lengths)
            left, right = items[:-1], items[1:]
            near = (owners[:-1] == owners[1:]) & (left != right)
            left, right = left[near], right[near]
            met = np.sort(np.concatenate([left * total + right, right * total + left]))
            keys.append(met[np.diff(met, prepend=-1) != 0])  # on millions of keys far faster than np.unique
            begin += size
        # Rows of later domains are larger, so the keys of all domains together are ascending already.
        pairs = np.concatenate(keys)
        rows, neighbours = np.divmod(pairs, max(total, 1))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(rows, minlength=total))])
        return cls(offsets, neighbours, np.flatnonzero(seen))

    def __len__(self) -> int:
        """N."""
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> Ints:
        """The neighbours of one row, ascending; empty for an item that stands alone."""
        return self.neighbours[self.offsets[row] : self.offsets[row + 1]]

    @property
    def counts(self) -> Ints:
        """``(N,)`` number of distinct neighbours."""
        return np.diff(self.offsets)

    def draw(self, rows: Ints, seed: int | np.random.Generator) -> Ints:
        """One positive ``(B,)`` for each of `rows` ``(B,)``, uniform over its neighbours, else itself.

        Row k uses the k-th random number of the seed and no other. Draw for a whole epoch at once, and
        neither the batch size nor the number of processes changes what is drawn.
        """
        counts = self.counts[rows]
        paired = np.flatnonzero(counts)
        chance = np.random.default_rng(seed).random(len(rows))[paired]
        # chance < 1, but its product with a count may round up to the count.
        chosen = np.minimum((chance * counts[paired]).astype(np.int64), counts[paired] - 1)
        found = np.array(rows, dtype=np.int64)
        found[paired] = self.neighbours[self.offsets[found[paired]] + chosen]
        return found


def _check(items: Ints, size: int, place: str) -> None:
    """Refuse ids that would silently point into another domain's catalogue."""
    outside = items[(items < 0) | (items >= size)]
    if len(outside):
        raise user_error(
            "a training history names an item that is not in the catalogue",
            place=place,
            value=int(outside[0]),
            allowed=f"0 to {size - 1}",
            remedy="run 'catalex prepare' again",
        )
