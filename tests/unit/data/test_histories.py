"""Flat histories against Python lists, and the parts of a split."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from catalex.data.columns import TEST, TRAIN, VALID
from catalex.data.histories import Cases, Histories, SplitHistories, popularity

lists = st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=8)


def unpacked(histories: Histories) -> list[list[int]]:
    return [histories[user].tolist() for user in range(len(histories))]


@given(lists)
def test_packing_and_unpacking(sequences: list[list[int]]) -> None:
    packed = Histories.from_lists(sequences)
    assert unpacked(packed) == sequences
    assert packed.lengths.tolist() == [len(sequence) for sequence in sequences]
    assert packed.items.dtype == packed.offsets.dtype == np.int64


@given(lists, st.integers(1, 8))
def test_latest_keeps_the_end_of_each(sequences: list[list[int]], count: int) -> None:
    assert unpacked(Histories.from_lists(sequences).latest(count)) == [s[-count:] for s in sequences]


@given(lists, st.sampled_from([None, 6, 9]))
def test_padding_fills_behind_the_end(sequences: list[list[int]], width: int | None) -> None:
    rows = Histories.from_lists(sequences).padded(-1, width).tolist()
    wide = max(map(len, sequences), default=0) if width is None else width
    assert rows == [s + [-1] * (wide - len(s)) for s in sequences]


@given(lists, st.data())
def test_take_picks_in_the_given_order_with_repeats(sequences: list[list[int]], data: st.DataObject) -> None:
    users = data.draw(st.lists(st.integers(0, len(sequences) - 1), max_size=9)) if sequences else []
    taken = Histories.from_lists(sequences).take(np.array(users, np.int64))
    assert unpacked(taken) == [sequences[user] for user in users]


@given(lists)
def test_popularity_counts(sequences: list[list[int]]) -> None:
    flat = [item for sequence in sequences for item in sequence]
    counts = popularity(Histories.from_lists(sequences), 12)
    assert counts.tolist() == [flat.count(item) for item in range(12)]


splits = st.lists(
    st.tuples(st.lists(st.integers(0, 9), max_size=5), st.lists(st.integers(0, 9), max_size=2),
              st.lists(st.integers(0, 9), max_size=2)),
    max_size=6,
)  # fmt: skip


@given(splits)
def test_training_and_cases_against_lists(users: list[tuple[list[int], list[int], list[int]]]) -> None:
    parts = [part for t, v, s in users for part in [TRAIN] * len(t) + [VALID] * len(v) + [TEST] * len(s)]
    whole = Histories.from_lists([[*t, *v, *s] for t, v, s in users])
    split = SplitHistories(whole, np.array(parts, np.int64))
    assert unpacked(split.training) == [t for t, _, _ in users]
    valid = [(u, t, v[0]) for u, (t, v, _) in enumerate(users) if v and t]
    test = [(u, [*t, *v], s[0]) for u, (t, v, s) in enumerate(users) if s and (t or v)]
    for cases, expected in ((split.validation, valid), (split.test, test)):
        assert cases.users.tolist() == [user for user, _, _ in expected]
        assert unpacked(cases.histories) == [history for _, history, _ in expected]
        assert cases.targets.tolist() == [target for _, _, target in expected]


def test_what_users_know_is_the_history_without_the_target() -> None:
    cases = Cases(np.arange(3), Histories.from_lists([[1, 2, 1], [4, 5, 4], []]), np.array([3, 4, 0]))
    assert unpacked(cases.known) == [[1, 2, 1], [5], []]


def test_taking_cases() -> None:
    split = SplitHistories(
        Histories.from_lists([[1, 2, 3], [4, 5, 6], [7, 8, 9]]), np.array([TRAIN, VALID, TEST] * 3)
    )
    some = split.test.take(np.array([2, 0]))
    assert some.users.tolist() == [2, 0]
    assert unpacked(some.histories) == [[7, 8], [1, 2]]
    assert some.targets.tolist() == [9, 3]


def test_the_split_id_names_items_users_and_parts() -> None:
    histories = Histories.from_lists([[1, 2, 3], [4, 5, 6]])
    parts = np.array([TRAIN, VALID, TEST] * 2)
    same = SplitHistories(histories, parts).split_id
    assert same == SplitHistories(Histories.from_lists([[1, 2, 3], [4, 5, 6]]), parts.copy()).split_id
    others = [
        SplitHistories(Histories.from_lists([[1, 2, 3], [4, 5, 7]]), parts),
        SplitHistories(Histories.from_lists([[1, 2], [3, 4, 5, 6]]), parts),
        SplitHistories(histories, np.array([TRAIN, TRAIN, TEST] * 2)),
    ]
    assert len({same, *(other.split_id for other in others)}) == 4
