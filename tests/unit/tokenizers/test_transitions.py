"""The Witten-Bell model against dictionaries, and as a probability distribution."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from catalex.data.histories import Cases, Histories
from catalex.tokenizers.transitions import training_pairs, transition_likelihood
from catalex.types import Codes


def probability(codes: Codes, pairs: list[tuple[int, int]], last: int, target: int) -> float:
    """The recursion of the definition, written out."""
    names = [tuple(row) for row in codes.tolist()]
    levels = codes.shape[1]
    result = 1.0
    for level in range(levels):
        before, wanted = names[target][:level], names[target][: level + 1]
        under = [n for n in names if n[:level] == before]
        p = sum(n[: level + 1] == wanted for n in under) / len(under)
        for length in range(levels + 1):
            context = names[last][:length]
            seen = [
                names[t][: level + 1]
                for s, t in pairs
                if names[s][:length] == context and names[t][:level] == before
            ]
            if seen:
                p = (seen.count(wanted) + len(set(seen)) * p) / (len(seen) + len(set(seen)))
        result *= p
    return result


def make(seed: int, items: int = 12) -> tuple[Codes, Histories, list[tuple[int, int]]]:
    generator = np.random.default_rng(seed)
    every = np.stack(np.unravel_index(generator.permutation(27)[:items], (3, 3, 3)), 1).astype(np.int32)
    sequences = [generator.integers(0, items, generator.integers(0, 6)).tolist() for _ in range(15)]
    pairs = [(a, b) for s in sequences for a, b in pairwise(s)]
    return every, Histories.from_lists(sequences), pairs


def test_training_pairs_stay_within_users() -> None:
    histories = Histories.from_lists([[], [1, 2, 3], [], [4], [5, 6], []])
    sources, targets = training_pairs(histories)
    assert list(zip(sources.tolist(), targets.tolist(), strict=True)) == [(1, 2), (2, 3), (5, 6)]


@pytest.mark.parametrize("seed", range(4))
def test_equals_the_definition_and_sums_to_one(seed: int) -> None:
    codes, training, pairs = make(seed)
    cases = Cases(np.arange(12), Histories.from_lists([[0, seed]] * 12), np.arange(12))
    each = [transition_likelihood(codes, training, cases.take(np.array([row]))).item for row in range(12)]
    expected = [math.log(probability(codes, pairs, seed, target)) for target in range(12)]
    np.testing.assert_allclose(each, expected, rtol=1e-9)
    assert sum(map(math.exp, each)) == pytest.approx(1)
    found = transition_likelihood(codes, training, cases)
    assert found.item == pytest.approx(np.mean(expected))
    assert sum(found.levels) == pytest.approx(found.item)
    assert found.pairs == 12


def test_without_training_every_item_is_equally_likely() -> None:
    codes, _, _ = make(0)
    cases = Cases(np.arange(2), Histories.from_lists([[0], [1]]), np.array([5, 7]))
    found = transition_likelihood(codes, Histories.from_lists([[3], []]), cases)
    assert found.item == pytest.approx(-math.log(12)) == found.uniform


def test_colliding_items_share_the_probability_of_their_identifier() -> None:
    codes = np.array([[0, 0], [0, 0], [1, 0], [1, 1]], np.int32)
    cases = Cases(np.arange(4), Histories.from_lists([[2]] * 4), np.arange(4))
    training = Histories.from_lists([[2, 0], [2, 3]])
    each = [transition_likelihood(codes, training, cases.take(np.array([row]))).item for row in range(4)]
    assert sum(map(math.exp, each)) == pytest.approx(1)
    assert each[0] == pytest.approx(each[1])


def test_meaningful_identifiers_beat_shuffled_ones() -> None:
    """Two worlds of items; users stay in theirs."""
    generator = np.random.default_rng(0)
    codes = np.stack(np.unravel_index(np.arange(60), (2, 30)), 1).astype(np.int32)
    sequences = [(30 * (user % 2) + generator.integers(0, 30, 6)).tolist() for user in range(80)]
    cases = Cases(
        np.arange(80), Histories.from_lists([s[:-1] for s in sequences]), np.array([s[-1] for s in sequences])
    )
    training = Histories.from_lists([s[:-1] for s in sequences])
    good = transition_likelihood(codes, training, cases)
    bad = transition_likelihood(codes[generator.permutation(60)], training, cases)
    assert good.item > bad.item + 0.3
    assert good.levels[0] == pytest.approx(0, abs=0.1)
