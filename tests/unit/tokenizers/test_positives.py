"""Co-occurring items: by hand, against a slow oracle, and blind to what is held out."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalex.data.columns import ITEMS_SCHEMA, TRAIN
from catalex.data.domain import Domain
from catalex.data.histories import Histories, SplitHistories
from catalex.errors import CatalexError
from catalex.tokenizers.positives import Positives
from support.worlds import leave_one_out, with_held_out


def oracle(training: list[list[list[int]]], sizes: list[int]) -> dict[int, set[int]]:
    """One user, one pair at a time."""
    found: dict[int, set[int]] = {row: set() for row in range(sum(sizes))}
    for number, sequences in enumerate(training):
        begin = sum(sizes[:number])
        for sequence in sequences:
            for one, other in pairwise(sequence):
                if one != other:
                    found[begin + one].add(begin + other)
                    found[begin + other].add(begin + one)
    return found


def test_neighbours_worked_by_hand() -> None:
    # Domain 1 has items 0..4 (rows 0..4), domain 2 items 0..2 (rows 5..7).
    first = Histories.from_lists([[0, 1, 0, 1], [], [1, 2], [3, 3], [2]])
    second = Histories.from_lists([[0, 2]])
    positives = Positives.of([first, second], [5, 3])
    assert len(positives) == 8
    # 0-1 met three times and counts once; users end at commas: 1 (user 0) and 1 (user 2), 2 and 3 never met.
    assert [positives[row].tolist() for row in range(8)] == [[1], [0, 2], [1], [], [], [7], [], [5]]
    assert positives.counts.tolist() == [1, 2, 1, 0, 0, 1, 0, 1]
    assert positives.trained.tolist() == [0, 1, 2, 3, 5, 7]  # 3 occurs, alone; 4 and 6 never do
    drawn = positives.draw(np.arange(8), 0)
    assert drawn[[0, 2, 3, 4, 5, 6, 7]].tolist() == [1, 1, 3, 4, 7, 6, 5]


sequences = st.lists(st.lists(st.integers(0, 5), max_size=8), max_size=5)


@settings(max_examples=100, deadline=None)
@given(st.lists(sequences, min_size=1, max_size=3))
def test_neighbours_equal_the_oracle(training: list[list[list[int]]]) -> None:
    sizes = [6, 9, 7][: len(training)]
    positives = Positives.of([Histories.from_lists(one) for one in training], sizes)
    expected = oracle(training, sizes)
    assert {row: set(positives[row].tolist()) for row in range(len(positives))} == expected
    assert positives.counts.tolist() == [len(expected[row]) for row in range(len(positives))]
    present = {sum(sizes[:n]) + item for n, one in enumerate(training) for user in one for item in user}
    assert positives.trained.tolist() == sorted(present)
    rows = np.repeat(np.arange(len(positives)), 3)
    for row, drawn in zip(rows.tolist(), positives.draw(rows, 7).tolist(), strict=True):
        assert drawn in (expected[row] or {row})


def star(leaves: int) -> Positives:
    """Row 0 is next to rows 1..leaves, popular leaves no more than others: a set."""
    met = [[0, leaf] for leaf in range(1, leaves + 1)] + [[0, 1]] * 50
    return Positives.of([Histories.from_lists(met)], [leaves + 1])


def test_draws_are_uniform_over_distinct_neighbours() -> None:
    drawn = star(5).draw(np.zeros(50_000, np.int64), 1)
    counts = np.bincount(drawn, minlength=6)
    assert counts[0] == 0
    expected = 10_000
    assert (
        (counts[1:] - expected) ** 2 / expected
    ).sum() < 18.5  # chi-square, 4 degrees of freedom, p = .001


def test_draws_depend_on_the_seed_and_the_place_in_the_order_alone() -> None:
    positives, rows = star(40), np.zeros(30, np.int64)
    drawn = positives.draw(rows, 3)
    np.testing.assert_array_equal(positives.draw(rows, 3), drawn)
    np.testing.assert_array_equal(positives.draw(rows, np.random.default_rng(3)), drawn)
    assert (positives.draw(rows, 4) != drawn).any()
    # Other rows before it, with fewer neighbours, do not shift what a place draws.
    other = rows.copy()
    other[:15] = 7
    np.testing.assert_array_equal(positives.draw(other, 3)[15:], drawn[15:])
    generator = np.random.default_rng(3)
    parts = [positives.draw(rows[:11], generator), positives.draw(rows[11:], generator)]
    np.testing.assert_array_equal(np.concatenate(parts), drawn)


def test_the_largest_random_number_still_draws_the_last_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    class Highest:
        def random(self, size: int) -> np.ndarray:
            return np.full(size, np.nextafter(1.0, 0.0))

    monkeypatch.setattr(np.random, "default_rng", lambda seed: Highest())
    assert star(3).draw(np.array([0, 2]), 0).tolist() == [3, 0]


def test_drawing_does_not_write_into_the_order() -> None:
    rows = np.array([0, 1, 2])
    star(2).draw(rows, 0)
    assert rows.tolist() == [0, 1, 2]
    assert star(2).draw(np.zeros(0, np.int64), 0).shape == (0,)


def domain(split: SplitHistories, items: int) -> Domain:
    table = pa.Table.from_pylist([{"item_id": i} for i in range(items)], schema=ITEMS_SCHEMA)
    return Domain("demo", None, table, split, {})  # type: ignore[arg-type]


def of_domain(one: Domain) -> Positives:
    return Positives.of([one.sequences.training], [len(one)])


def test_what_is_held_out_never_contributes() -> None:
    generator = np.random.default_rng(0)
    split = leave_one_out([generator.integers(0, 12, 3 + u % 5).tolist() for u in range(20)])
    replaced = with_held_out(split, generator.integers(12, 30, 40))
    one, other = of_domain(domain(split, 30)), of_domain(domain(replaced, 30))
    for name in ("offsets", "neighbours", "trained"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    # The check can fail: with all interactions the two would differ.
    leaking = [Positives.of([s.all], [30]) for s in (split, replaced)]
    assert leaking[0].trained.tolist() != leaking[1].trained.tolist()
    held_out_only = np.setdiff1d(split.all.items, split.all.items[split.parts == TRAIN])
    assert not np.isin(held_out_only, one.trained).any()


def test_held_out_interactions_between_training_ones_build_no_bridge() -> None:
    # User 0 trains on 0, 1 and holds out 2, 3: 1 and 2 are neighbours in time, but not in training.
    positives = of_domain(domain(leave_one_out([[0, 1, 2, 3]]), 4))
    assert [positives[row].tolist() for row in range(4)] == [[1], [0], [], []]
    assert positives.trained.tolist() == [0, 1]


def test_no_domains_and_no_interactions() -> None:
    assert len(Positives.of([], [])) == 0
    positives = Positives.of([Histories.from_lists([]), Histories.from_lists([[]])], [2, 0])
    assert positives.counts.tolist() == [0, 0]
    assert positives.trained.tolist() == []
    assert positives.draw(np.array([1, 0]), 0).tolist() == [1, 0]


def test_an_item_beyond_the_catalogue_is_refused() -> None:
    good, bad = Histories.from_lists([[0, 1]]), Histories.from_lists([[1, 3]])
    with pytest.raises(
        CatalexError, match=r"domain 2 of 2: .* not in the catalogue \(found 3; allowed: 0 to 2"
    ):
        Positives.of([good, bad], [2, 3])
