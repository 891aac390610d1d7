"""Ranking metrics against worked values, a brute-force ranker, and simulated order inside collisions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalex.evaluation.metrics import (
    METRICS,
    Place,
    expected_ndcg_at,
    expected_recall_at,
    measure,
    mrr_at,
    ndcg_at,
    place_of_target,
    recall_at,
)

RANKS = np.array([1, 4, 12, 7])


def test_worked_values():
    assert recall_at(RANKS, 5).tolist() == [1, 1, 0, 0]
    assert recall_at(RANKS, 10).tolist() == [1, 1, 0, 1]
    assert ndcg_at(RANKS, 5).mean() == pytest.approx(0.3577, abs=5e-5)
    assert ndcg_at(RANKS, 10).mean() == pytest.approx(0.4410, abs=5e-5)
    assert mrr_at(RANKS, 10) == pytest.approx([1, 1 / 4, 0, 1 / 7])


def test_discounts_of_the_first_ten_ranks():
    expected = [1, 0.6309, 0.5, 0.4307, 0.3869, 0.3562, 0.3333, 0.3155, 0.3010, 0.2891]
    assert ndcg_at(np.arange(1, 11), 10) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("metric", METRICS.values())
def test_absent_target_scores_nothing(metric):
    assert metric(np.array([0, 0]), 10).tolist() == [0, 0]


def test_measure_reads_the_name():
    assert np.array_equal(measure("ndcg@5", RANKS), ndcg_at(RANKS, 5))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=30), st.integers(1, 30))
def test_order_of_metrics_and_growth_in_k(ranks, k):
    ranks = np.array(ranks)
    assert (mrr_at(ranks, k) <= ndcg_at(ranks, k) + 1e-12).all()
    assert (ndcg_at(ranks, k) <= recall_at(ranks, k) + 1e-12).all()
    for metric in METRICS.values():
        assert (metric(ranks, k) <= metric(ranks, k + 1)).all()


def test_against_a_brute_force_ranker():
    generator = np.random.default_rng(0)
    scores = generator.permuted(np.tile(np.arange(15.0), (50, 1)), axis=1)
    targets = generator.integers(0, 15, 50)
    ranks = (scores >= np.take_along_axis(scores, targets[:, None], 1)).sum(axis=1)
    for row, target in enumerate(targets):
        ordered = sorted(range(15), key=lambda item: -scores[row, item])[:10]
        gain = sum(1 / math.log2(place + 2) for place, item in enumerate(ordered) if item == target)
        assert ndcg_at(ranks, 10)[row] == pytest.approx(gain)
        assert recall_at(ranks, 10)[row] == float(target in ordered)


# --- collisions ------------------------------------------------------------------------------------


def test_worked_collision():
    place = Place(np.array([3]), np.array([4]))
    assert expected_recall_at(place, 5) == pytest.approx([0.5])
    assert expected_ndcg_at(place, 5) == pytest.approx([0.2044], abs=5e-5)


def test_place_of_target():
    sizes = np.array([2, 1, 3, 5])
    ranked = np.array([[2, 0, 1], [3, 1, -1], [1, -1, -1]])
    place = place_of_target(ranked, np.array([1, 3, 0]), sizes)
    assert place.ahead.tolist() == [5, 0, -1]
    assert place.size.tolist() == [1, 5, 2]
    assert expected_recall_at(place, 10).tolist() == [1, 1, 0]
    assert expected_ndcg_at(place, 10)[2] == 0


@given(st.lists(st.integers(0, 30), min_size=1, max_size=20), st.integers(1, 12))
def test_unique_identifiers_give_the_plain_metric(ranks, k):
    ranks = np.array(ranks)
    place = Place(ranks - 1, np.ones_like(ranks))
    assert expected_recall_at(place, k) == pytest.approx(recall_at(ranks, k))
    assert expected_ndcg_at(place, k) == pytest.approx(ndcg_at(ranks, k))


@given(st.lists(st.integers(1, 6), min_size=1, max_size=8), st.data())
def test_item_level_is_never_above_identifier_level(sizes, data):
    sizes = np.array(sizes)
    target = data.draw(st.integers(0, len(sizes) - 1))
    order = np.array([data.draw(st.permutations(range(len(sizes))))])
    identifier_rank = np.array([order[0].tolist().index(target) + 1])
    place = place_of_target(order, np.array([target]), sizes)
    for k in (1, 3, 5, 10):
        assert expected_recall_at(place, k)[0] <= recall_at(identifier_rank, k)[0] + 1e-12
        assert expected_ndcg_at(place, k)[0] <= ndcg_at(identifier_rank, k)[0] + 1e-12


def test_expectation_equals_a_simulation():
    generator = np.random.default_rng(1)
    ahead, size, k = 2, 5, 4
    ranks = ahead + 1 + generator.integers(0, size, 40_000)
    place = Place(np.array([ahead]), np.array([size]))
    assert expected_recall_at(place, k)[0] == pytest.approx(recall_at(ranks, k).mean(), abs=0.01)
    assert expected_ndcg_at(place, k)[0] == pytest.approx(ndcg_at(ranks, k).mean(), abs=0.01)
