"""Neighbours kept: hand-made cases, and the expectation over ties by simulation."""

from __future__ import annotations

import numpy as np
import pytest

from catalex.tokenizers import neighbours as nb


def test_nearest_by_cosine_leaves_the_item_out_and_ignores_length() -> None:
    vectors = np.array([[1, 0], [10, 1], [0, 1], [1, 0.5]], np.float32)
    assert nb.nearest_by_cosine(vectors, np.array([0, 2]), 2).tolist() == [[1, 3], [3, 1]]
    assert nb.nearest_by_cosine(vectors, np.array([0]), 10).shape == (1, 3)


def test_expectation_over_ties_equals_simulation() -> None:
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 3, (60, 3)).astype(np.int32)
    vectors = generator.normal(size=(60, 4)).astype(np.float32)
    queries = np.arange(0, 60, 3)
    truth = nb.nearest_by_cosine(vectors, queries, 5)
    total = []
    for _ in range(300):
        for row, query in enumerate(queries):
            shared = (codes == codes[query]).cumprod(1).sum(1) + generator.random(60)
            shared[query] = -1
            total.append(len(set(np.argsort(-shared)[:5]) & set(truth[row])) / 5)
    assert nb.kept_by_prefix(truth, codes, queries) == pytest.approx(np.mean(total), abs=0.01)


def test_codes_that_mirror_the_neighbourhoods_keep_all_and_constant_codes_keep_chance() -> None:
    centres = np.random.default_rng(0).normal(size=(20, 16))
    vectors = np.repeat(centres, 11, axis=0) + np.random.default_rng(1).normal(size=(220, 16)) * 0.01
    codes = np.stack([np.arange(220) // 11, np.arange(220) % 11], 1).astype(np.int32)
    queries = np.arange(220)
    truth = nb.nearest_by_cosine(vectors.astype(np.float32), queries)
    assert nb.kept_by_prefix(truth, codes, queries) == pytest.approx(1)
    assert nb.kept_by_reconstruction(truth, vectors.astype(np.float32), queries) == 1
    assert nb.kept_by_prefix(truth, np.zeros_like(codes), queries) == pytest.approx(10 / 219)


def test_a_catalogue_of_one_item_has_no_neighbours_to_lose() -> None:
    queries = nb.sample_queries(1)
    truth = nb.nearest_by_cosine(np.ones((1, 3), np.float32), queries)
    assert nb.kept_by_prefix(truth, np.zeros((1, 2), np.int32), queries) == 1
    assert nb.kept_by_reconstruction(truth, np.ones((1, 3), np.float32), queries) == 1


def test_large_catalogues_are_sampled_without_repetition() -> None:
    queries = nb.sample_queries(50_000)
    assert len(np.unique(queries)) == nb.QUERIES
    np.testing.assert_array_equal(queries, nb.sample_queries(50_000))
