"""Packing: every token has its place, no example is cut, little is left empty; batches are stratified."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from catalex.training.packing import Packed, cut, groups, row_length, rows, stratified

lengths_of_examples = st.lists(st.integers(1, 32), max_size=60)


def occupied(packed: Packed) -> list[int]:
    """All places that are taken, by a loop."""
    return [
        place
        for start, n in zip(packed.starts, packed.lengths, strict=True)
        for place in range(start, start + n)
    ]


@settings(max_examples=150, deadline=None)
@given(lengths=lengths_of_examples, multiple=st.sampled_from([None, 1, 2, 8]))
def test_rows_hold_every_example_uncut(lengths: list[int], multiple: int | None) -> None:
    packed = rows(np.array(lengths, np.int64), 32, multiple)
    taken = occupied(packed)
    assert len(set(taken)) == len(taken) == sum(lengths)
    assert packed.size % (32 * (multiple or 1)) == 0
    assert all(0 <= place < packed.size for place in taken)
    assert sorted(packed.order) == list(range(len(lengths)))
    assert [lengths[i] for i in packed.order] == packed.lengths.tolist() == sorted(lengths)
    assert all(s // 32 == (s + n - 1) // 32 for s, n in zip(packed.starts, packed.lengths, strict=True))


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(1, 32), min_size=1, max_size=60))
def test_rows_are_as_few_as_first_fit_decreasing_promises(lengths: list[int]) -> None:
    """At most 11/9 of the fewest possible and one (Johnson 1973), of which the sum of tokens is a lower bound
    that is short by the halves of examples longer than half a row; so the oracle is the plain algorithm."""
    bins: list[int] = []
    for length in sorted(lengths, reverse=True):
        fit = next((i for i, free in enumerate(bins) if free >= length), None)
        if fit is None:
            bins.append(32 - length)
        else:
            bins[fit] -= length
    assert rows(np.array(lengths), 32, 1).size // 32 <= len(bins) * 11 / 9 + 1


def test_prefixes_of_twenty_items_fill_rows_of_64() -> None:
    random = np.random.default_rng(0)
    lengths = 3 * np.minimum(random.geometric(0.15, 4096), 20) + 1
    packed = rows(lengths, row_length(61))
    assert packed.size % (64 * 16) == 0
    assert packed.filled > 0.93


@settings(max_examples=60, deadline=None)
@given(lengths=lengths_of_examples)
def test_groups_lie_back_to_back_by_length(lengths: list[int]) -> None:
    packed, widths = groups(np.array(lengths, np.int64))
    assert occupied(packed) == list(range(sum(lengths)))
    assert packed.size == sum(lengths)
    expanded = [int(width) for count, width in widths for _ in range(count)]
    assert expanded == [lengths[i] for i in packed.order] == sorted(lengths)
    example, place = packed.places()
    assert [(int(packed.starts[e]) + int(p)) for e, p in zip(example, place, strict=True)] == list(
        range(sum(lengths))
    )


def test_a_row_is_a_power_of_two_that_holds_the_longest() -> None:
    assert [row_length(n) for n in (4, 61, 64, 65, 128, 201)] == [64, 64, 64, 128, 128, 256]


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    size=st.integers(1, 30),
    seed=st.integers(0, 50),
)
def test_every_stretch_has_its_share_of_every_length(counts: list[int], size: int, seed: int) -> None:
    lengths = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    order = stratified(lengths, np.random.default_rng(seed))
    assert sorted(order) == list(range(len(lengths)))
    for begin in range(0, len(order) - size + 1, size):
        found = np.bincount(lengths[order[begin : begin + size]], minlength=len(counts))
        share = np.array(counts) / len(lengths)
        assert (np.abs(found - size * share) <= 1 + len(counts) * share + 1e-9).all()


def test_stratified_orders_are_random_within_a_length() -> None:
    lengths = np.repeat([1, 2], 500)
    one, other = (stratified(lengths, np.random.default_rng(seed)) for seed in (0, 1))
    assert not np.array_equal(one, other)
    first = one[lengths[one] == 1]
    assert abs(np.corrcoef(first, np.arange(500))[0, 1]) < 0.15


def test_batches_are_few_and_equal() -> None:
    parts = cut(np.arange(103), 25)
    assert [len(part) for part in parts] == [21, 21, 21, 20, 20]
    assert np.concatenate(parts).tolist() == list(range(103))
    assert cut(np.arange(0), 25) == []
