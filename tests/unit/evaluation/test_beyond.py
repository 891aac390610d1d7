"""Coverage, Gini and popularity bias by hand."""

from __future__ import annotations

import numpy as np
import pytest

from catalex.evaluation.beyond import (
    beyond_accuracy,
    coverage,
    gini,
    popularity_percentiles,
    recommendation_counts,
)


def test_counts_skip_the_ends_of_short_lists():
    top = np.array([[0, 2, -1], [2, -1, -1]])
    counts = recommendation_counts(top, 4)
    assert counts.tolist() == [1, 0, 2, 0]
    assert coverage(counts) == 0.5


def test_gini_by_pairwise_differences():
    counts = np.array([3, 0, 1, 7, 7])
    pairs = np.abs(counts[:, None] - counts[None]).sum() / (2 * len(counts) * counts.sum())
    assert gini(counts) == pytest.approx(pairs)


@pytest.mark.parametrize(("counts", "value"), [([4, 4, 4, 4], 0.0), ([0, 0, 0, 9], 0.75), ([0, 0], 0.0)])
def test_gini_extremes(counts, value):
    assert gini(np.array(counts)) == pytest.approx(value)


def test_percentiles_share_ties():
    assert popularity_percentiles(np.array([5, 1, 1, 9])) == pytest.approx([0.625, 0.25, 0.25, 0.875])


def test_bias_of_recommending_only_the_most_popular():
    found = beyond_accuracy(np.array([[3], [3]]), np.array([1, 2]), np.array([5, 1, 1, 9]))
    assert found["percentile_recommended"] == pytest.approx(0.875)
    assert found["percentile_targets"] == pytest.approx(0.25)
    assert found["popularity_bias"] == pytest.approx(0.625)
    assert found["coverage"] == 0.25
