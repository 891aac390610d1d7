"""Use, collisions and balance: the worked values of the definitions, and extremes."""

from __future__ import annotations

import numpy as np
import pytest

from catalex.quantize import usage as use


@pytest.mark.parametrize(
    ("share", "utilisation", "perplexity"),
    [([0.5, 0.5, 0, 0], 0.5, 2), ([0.25] * 4, 1, 4), ([0.7, 0.1, 0.1, 0.1], 1, 2.561), ([1, 0], 0.5, 1)],
)
def test_usage(share: list[float], utilisation: float, perplexity: float) -> None:
    found = use.usage(share)
    assert found.utilisation == utilisation
    assert found.perplexity == pytest.approx(perplexity, abs=5e-4)
    assert found.dead == share.count(0)
    assert found.max_share == max(share)


def test_collisions_of_the_worked_example() -> None:
    codes = np.array([[0, 1], [0, 1], [0, 1], [1, 1], [2, 0], [2, 0]])
    found = use.collisions(codes)
    assert (found.items, found.distinct, found.rate, found.largest) == (6, 3, 0.5, 3)
    assert found.colliding == pytest.approx(5 / 6)
    assert use.collisions(codes[:, ::-1], depth=1).distinct == 2
    assert use.collisions(np.zeros((0, 3), int)).rate == 0


def test_jensen_shannon() -> None:
    assert use.jensen_shannon([0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]) == pytest.approx(1)
    assert use.jensen_shannon([0.2, 0.8], [0.2, 0.8]) == 0
    assert use.jensen_shannon([1, 0], [0.5, 0.5]) == pytest.approx(0.311278, abs=1e-6)


def test_conditional_entropy_is_zero_for_a_function_of_the_prefix() -> None:
    first = np.arange(40) % 4
    codes = np.stack([first, (first * 3) % 4, np.arange(40) // 4 % 2], 1)
    assert use.conditional_entropy(codes, 0) == pytest.approx(np.log(4))
    assert use.conditional_entropy(codes, 1) == pytest.approx(0, abs=1e-12)
    assert use.conditional_entropy(codes, 2) == pytest.approx(np.log(2))


def test_balance() -> None:
    found = use.balance([1, 3])
    assert found.min_max == pytest.approx(1 / 3)
    assert found.variation == pytest.approx(0.5)
    assert found.jain == pytest.approx(16 / 20)
    assert use.balance([0, 0, 5]).jain == pytest.approx(1 / 3)
    assert use.balance([0, 0]).jain == 1


def test_prefix_groups_are_dense_and_lexicographic() -> None:
    codes = np.array([[2, 0], [0, 5], [2, 0], [0, 1]])
    assert use.prefix_groups(codes, 0).tolist() == [0, 0, 0, 0]
    assert use.prefix_groups(codes, 1).tolist() == [1, 0, 1, 0]
    assert use.prefix_groups(codes, 2).tolist() == [2, 1, 2, 0]


def test_shared_identifiers() -> None:
    one, other = np.array([[0, 1], [0, 1], [2, 2], [3, 3]]), np.array([[2, 2]])
    assert use.shared_identifiers(one, other) == pytest.approx(1 / 3)
    assert use.shared_identifiers(other, one) == 1
