"""Filters against slow, obvious oracles."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalex.data.filtering import k_core, latest, one_of_each_pair, without_repeats

EVENTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=60)


def arrays(events: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    users, items = np.array(events, dtype=np.int32).reshape(-1, 2).T
    return users, items


def slow_k_core(events: list[tuple[int, int]], user_minimum: int, item_minimum: int) -> list[bool]:
    """Remove one offending event at a time until there is none."""
    left = set(range(len(events)))
    while True:
        users = Counter(events[i][0] for i in left)
        items = Counter(events[i][1] for i in left)
        bad = [i for i in left if users[events[i][0]] < user_minimum or items[events[i][1]] < item_minimum]
        if not bad:
            return [i in left for i in range(len(events))]
        left.remove(bad[0])


@given(EVENTS, st.integers(0, 4), st.integers(0, 4))
def test_k_core_equals_the_slow_one(
    events: list[tuple[int, int]], user_minimum: int, item_minimum: int
) -> None:
    keep = k_core(*arrays(events), user_minimum, item_minimum)
    assert keep.tolist() == slow_k_core(events, user_minimum, item_minimum)


@given(EVENTS)
def test_k_core_of_one_is_everything(events: list[tuple[int, int]]) -> None:
    assert k_core(*arrays(events), 1, 1).all()


def test_k_core_chain_reaction() -> None:
    """A chain in which each removal exposes the next, so that one round is not enough."""
    events = [(u, i) for u in range(20) for i in (u, u + 1)]
    assert not k_core(*arrays(events), 2, 2).any()
    closed = [*events, (20, 20), (20, 0)]
    assert k_core(*arrays(closed), 2, 2).all()


@given(EVENTS, st.sampled_from(["first", "last"]))
def test_one_of_each_pair(events: list[tuple[int, int]], which: str) -> None:
    positions = {pair: i for i, pair in reversed(list(enumerate(events)))}
    if which == "last":
        positions = {pair: i for i, pair in enumerate(events)}
    keep = one_of_each_pair(*arrays(events), which)  # type: ignore[arg-type]
    assert np.flatnonzero(keep).tolist() == sorted(positions.values())


@given(EVENTS)
def test_without_repeats(events: list[tuple[int, int]]) -> None:
    events = sorted(events, key=lambda event: event[0])
    expected = [i == 0 or events[i] != events[i - 1] for i in range(len(events))]
    assert without_repeats(*arrays(events)).tolist() == expected


@given(EVENTS, st.integers(1, 5))
def test_latest(events: list[tuple[int, int]], count: int) -> None:
    users = sorted(user for user, _ in events)
    expected = [users[i + 1 :].count(user) < count for i, user in enumerate(users)]
    assert latest(np.array(users, dtype=np.int32), count).tolist() == expected


@pytest.mark.parametrize("count", [1, 2, 3])
def test_latest_keeps_users_without_events_out_of_the_way(count: int) -> None:
    assert latest(np.array([3, 3, 3, 9]), count).sum() == min(count, 3) + 1
