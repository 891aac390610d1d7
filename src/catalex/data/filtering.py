"""Which interactions to keep: k-core, duplicates, consecutive repeats, latest n.

Each function takes flat arrays of E events and returns a mask over them. Those that speak of order want them
sorted by user, then time.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from catalex.types import Bools, Ints

Ids = NDArray[np.integer]
"""``(E,)`` dense ids of users or items."""


def k_core(users: Ids, items: Ids, user_minimum: int, item_minimum: int) -> Bools:
    """The largest set of events in which every user has `user_minimum` and every item `item_minimum` events.

    Removing a user may push an item below its minimum and so on; the rounds end at the unique fixpoint. A
    minimum of 0 or 1 asks for nothing.

    Args:
        users: ``(E,)`` any order.
        items: ``(E,)``

    Returns:
        ``(E,)`` true for events that stay; all false when nothing stays.

    >>> k_core(np.array([0, 0, 1]), np.array([0, 1, 0]), 2, 1).tolist()
    [True, True, False]
    """
    keep = np.ones(len(users), np.bool_)
    if not len(users):
        return keep
    user_counts, item_counts = np.bincount(users), np.bincount(items)
    while True:
        few_users = (user_counts > 0) & (user_counts < user_minimum)
        few_items = (item_counts > 0) & (item_counts < item_minimum)
        if not few_users.any() and not few_items.any():
            return keep
        drop = few_users[users]
        drop |= few_items[items]
        drop &= keep
        user_counts = user_counts - np.bincount(users[drop], minlength=len(user_counts))
        item_counts = item_counts - np.bincount(items[drop], minlength=len(item_counts))
        keep &= ~drop


def one_of_each_pair(users: Ids, items: Ids, which: Literal["first", "last"]) -> Bools:
    """One event for each pair of user and item: the first, or the last, in the given order.

    >>> one_of_each_pair(np.array([0, 0, 0]), np.array([5, 6, 5]), "last").tolist()
    [False, True, True]
    """
    keep = np.zeros(len(users), np.bool_)
    if not len(users):
        return keep
    pairs = users.astype(np.int64) * (int(items.max()) + 1) + items
    if which == "last":
        pairs = pairs[::-1]
    order = np.argsort(pairs, kind="stable")
    ordered = pairs[order]
    starts = np.concatenate([np.ones(1, np.bool_), ordered[1:] != ordered[:-1]])
    chosen = order[starts]
    keep[len(users) - 1 - chosen if which == "last" else chosen] = True
    return keep


def without_repeats(users: Ids, items: Ids) -> Bools:
    """All events but those whose item is the same user's previous one.

    >>> without_repeats(np.array([0, 0, 0, 1]), np.array([5, 5, 6, 6])).tolist()
    [True, False, True, True]
    """
    keep = np.ones(len(users), np.bool_)
    keep[1:] = (users[1:] != users[:-1]) | (items[1:] != items[:-1])
    return keep


def latest(users: Ids, count: int) -> Bools:
    """The last `count` events of each user.

    >>> latest(np.array([0, 0, 0, 1]), 2).tolist()
    [False, True, True, True]
    """
    if not len(users):
        return np.ones(0, np.bool_)
    ends = np.cumsum(np.bincount(users))
    remaining: Ints = ends[users] - np.arange(len(users))
    mask: Bools = remaining <= count
    return mask
