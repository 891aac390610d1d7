"""Which expert chose an identifier's codes, when the identifier does not say so.

Codes of all experts share the tokens of their level, so codes alone do not name the expert whose code vectors
they mean. A tokenizer that writes no names remembers what its training items chose, and takes the most
frequent expert. Across domains that is a guess: code tuples of two experts may be equal.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np

from catalex.types import Codes, Ints


class _Level(NamedTuple):
    """Prefixes of one length, as children of those that are a code shorter.

    Attributes:
        keys: ``(M,)`` ascending, ``parent * T + code``; the place of a key is the number of its prefix.
        experts: ``(M,)`` expert that most training items with the prefix chose.
    """

    keys: Ints
    experts: Ints


class ExpertMemory:
    """The experts that training items chose, by codes and by every shorter prefix of them.

    Args:
        rows: ``(M, L + 2)`` int32 with at least one row: L codes, the expert that chose them, and the number
            of training items with both. This is what is saved, 4 (L + 2) bytes a training item at most.
        size: T, codes a level.
    """

    def __init__(self, rows: Codes, size: int) -> None:
        self.rows, self.size = rows, size
        counts, experts = rows[:, -1].astype(np.int64), rows[:, -2].astype(np.int64)
        parents = np.zeros(len(rows), np.int64)
        self._usual = int(np.bincount(experts, counts).argmax())
        self._levels: list[_Level] = []
        for code in rows[:, :-2].T.astype(np.int64):
            keys, parents = np.unique(parents * size + code, return_inverse=True)
            self._levels.append(_Level(keys, _most_frequent(parents, experts, counts)))

    @classmethod
    def of(cls, codes: Codes, experts: Codes, size: int) -> Self:
        """Remember codes ``(N, L)`` of training items and the experts ``(N,)`` that chose them."""
        both = np.concatenate([codes, experts[:, None]], axis=1, dtype=np.int32)
        rows, counts = np.unique(both, axis=0, return_counts=True)
        return cls(np.concatenate([rows, counts[:, None]], axis=1, dtype=np.int32), size)

    def guess(self, codes: Codes) -> Ints:
        """``(N,)`` expert for codes ``(N, L)``: the one that most training items with these codes chose.

        Where no training item has them, those with the longest common prefix are asked, in the end all. Ties
        go to the lowest number.
        """
        found = np.full(len(codes), self._usual, np.int64)
        known, parents = np.arange(len(codes)), np.zeros(len(codes), np.int64)
        for level, code in zip(self._levels, codes.T.astype(np.int64), strict=True):
            keys = parents * self.size + code[known]
            places = np.searchsorted(level.keys, keys).clip(max=len(level.keys) - 1)
            seen = level.keys[places] == keys
            known, parents = known[seen], places[seen]
            found[known] = level.experts[parents]
        return found


def _most_frequent(groups: Ints, experts: Ints, counts: Ints) -> Ints:
    """``(G,)`` for each group the expert with most items, ties to the lowest, from ``(M,)`` groups, experts
    and numbers of items; groups are 0 to G - 1."""
    width = int(experts.max(initial=0)) + 1
    pairs, of = np.unique(groups * width + experts, return_inverse=True)
    items = np.bincount(of, counts, len(pairs))
    order = np.lexsort((pairs % width, -items, pairs // width))
    first = np.diff((pairs // width)[order], prepend=-1) != 0
    found: Ints = (pairs % width)[order][first]
    return found
