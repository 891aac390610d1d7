"""Which interactions are for training, validation and test. Events are sorted by user, then time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from catalex.data.columns import TEST, TRAIN, VALID
from catalex.errors import user_error
from catalex.types import Ints

Parts = NDArray[np.int8]
"""``(E,)`` values TRAIN, VALID, TEST."""

SHORTEST = 3
"""Interactions a user needs to be evaluated: one to learn from, one for validation, one for test."""


def leave_one_out(lengths: Ints, place: str) -> Parts:
    """The last event of each user is for test, the second last for validation, the others for training.

    Users with fewer than three events are for training only (as in SASRec, Kang & McAuley 2018).

    Args:
        lengths: ``(U,)`` number of events of each user.
        place: Name of the domain, for messages.

    Raises:
        CatalexError: When no user has three events.

    >>> leave_one_out(np.array([4, 2]), "demo").tolist()
    [0, 0, 1, 2, 0, 0]
    """
    parts = np.full(int(lengths.sum()), TRAIN, np.int8)
    ends = np.cumsum(lengths)[lengths >= SHORTEST]
    if not len(ends):
        raise user_error(
            f"the domain is too small for a leave-one-out split: no user has {SHORTEST} interactions",
            place=place,
            value=f"{len(lengths):,} users with at most {int(lengths.max(initial=0))}",
            remedy="lower min_interactions, or bring more data",
        )
    parts[ends - 1] = TEST
    parts[ends - 2] = VALID
    return parts


def global_time(
    timestamps: Ints, valid_fraction: float, test_fraction: float, place: str
) -> tuple[Parts, int, int]:
    """Two moments cut the whole domain: before the first is training, between them validation, then test.

    The moments are quantiles of all timestamps: sorted ascending, those at positions
    ``floor((1 - valid - test) E)`` and ``floor((1 - test) E)``. An event at a cut belongs to the later part:
    equal times are never torn apart.

    Args:
        timestamps: ``(E,)`` seconds.
        valid_fraction: Share of events for validation.
        test_fraction: Share of events for test.
        place: Name of the domain, for messages.

    Returns:
        Parts, and the two cuts in seconds.

    Raises:
        CatalexError: When a part would be empty.

    >>> global_time(np.array([1, 2, 3, 4]), 0.25, 0.25, "demo")
    (array([0, 0, 1, 2], dtype=int8), 3, 4)
    """
    events = len(timestamps)
    first = min(int((1 - valid_fraction - test_fraction) * events + 1e-9), max(events - 1, 0))
    second = min(int((1 - test_fraction) * events + 1e-9), max(events - 1, 0))
    ordered = np.partition(timestamps, [first, second])
    cuts = int(ordered[first]), int(ordered[second])
    parts = np.full(events, TRAIN, np.int8)
    parts[timestamps >= cuts[0]] = VALID
    parts[timestamps >= cuts[1]] = TEST
    counts = np.bincount(parts, minlength=3)
    if not counts.all():
        raise user_error(
            "the domain is too small for a global-time split: a part is empty",
            place=place,
            value=f"train {counts[TRAIN]:,}, valid {counts[VALID]:,}, test {counts[TEST]:,}",
            remedy="change the fractions, or use split: leave-one-out",
        )
    return parts, cuts[0], cuts[1]
