"""Item-level metrics of a ranking of identifiers that several items may share.

Counting a hit when the *identifier* matches rewards collisions: a tokenizer that gives all items one
identifier would score 1. Here the ranked identifiers are expanded into their items, the items of one
identifier in random order, and the expectation over that order is taken. With unique identifiers it equals
the plain metric of the same rank; with shared ones it is never larger than the identifier-level metric.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from catalex.types import Doubles, Ints

NOT_FOUND = -1
"""Value of `Place.ahead` where the target's identifier is not in the ranking."""


@dataclass(frozen=True)
class Place:
    """Where the target's group of items stands once a ranking of identifiers is expanded into items.

    Attributes:
        ahead: ``(B,)`` S, items in the groups ahead of the target's; `NOT_FOUND` where its group is not
            ranked.
        size: ``(B,)`` g >= 1, items in the target's group, the target included.
    """

    ahead: Ints
    size: Ints


def place_of_target(ranked: Ints, targets: Ints, sizes: Ints) -> Place:
    """Locate each target's group in a ranking of groups (a group = the items of one identifier).

    Args:
        ranked: ``(B, W)`` group numbers, best first, without repetition; -1 after the end of a row.
        targets: ``(B,)`` group number of each target item.
        sizes: ``(G,)`` items in each group.
    """
    filled = np.where(ranked >= 0, sizes[ranked], 0)
    before = np.cumsum(filled, axis=1) - filled
    hit = ranked == targets[:, None]
    first = hit.argmax(axis=1)[:, None]
    ahead = np.where(hit.any(axis=1), np.take_along_axis(before, first, axis=1)[:, 0], NOT_FOUND)
    return Place(ahead.astype(np.int64), sizes[targets].astype(np.int64))


def expected_recall_at(place: Place, k: int) -> Doubles:
    """``E[Recall@K] = clip((K - S) / g, 0, 1)``: the chance to be among the first K items. ``(B,)``

    S = 3, g = 4, K = 5 gives .5.
    """
    values = np.clip((k - place.ahead) / place.size, 0.0, 1.0)
    return np.where(place.ahead == NOT_FOUND, 0.0, values)


def expected_ndcg_at(place: Place, k: int) -> Doubles:
    """``E[NDCG@K] = (1/g) * sum of 1 / log2(S + j + 1) over j = 1..g with S + j <= K``. ``(B,)``

    S = 3, g = 4, K = 5 gives (.4307 + .3869) / 4 = .2044.
    """
    discounts = 1.0 / np.log2(np.arange(1, k + 1) + 1.0)
    totals = np.concatenate([np.zeros(1), np.cumsum(discounts)])
    start = np.minimum(place.ahead, k)
    stop = np.minimum(place.ahead + place.size, k)
    values = (totals[stop] - totals[start]) / place.size
    return np.where(place.ahead == NOT_FOUND, 0.0, values)
