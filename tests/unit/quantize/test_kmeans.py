"""k-means against scikit-learn and against its own promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans as Oracle

from catalex.quantize import in_blocks, kmeans, nearest, squared_distances
from catalex.quantize.distances import PASS_ROWS, passes
from catalex.quantize.kmeans import cluster_means


def blobs(count: int = 600, width: int = 8, centres: int = 12, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    middle = 4 * torch.randn(centres, width, generator=generator)
    return middle[torch.arange(count) % centres] + torch.randn(count, width, generator=generator)


def test_equals_scikit_learn_from_the_same_start() -> None:
    vectors = blobs()
    start = kmeans(vectors, 12, seed=3, iterations=0).centroids
    ours = kmeans(vectors, 12, seed=3, iterations=100)
    oracle = Oracle(12, init=start.numpy(), n_init=1, max_iter=100, tol=0, algorithm="lloyd").fit(
        vectors.numpy()
    )
    assert torch.equal(ours.assignment, torch.from_numpy(oracle.labels_).long())
    assert ours.inertia[-1] == pytest.approx(oracle.inertia_, rel=1e-5)
    torch.testing.assert_close(
        ours.centroids, torch.from_numpy(oracle.cluster_centers_), atol=1e-4, rtol=1e-4
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30), st.sampled_from(["k-means++", "sample"]), st.booleans())
def test_inertia_never_increases_and_no_cluster_is_empty(
    seed: int, clusters: int, init: str, weigh: bool
) -> None:
    vectors = blobs(90, 3, 5, seed)
    weights = torch.rand(90, generator=torch.Generator().manual_seed(seed)) + 0.1 if weigh else None
    found = kmeans(vectors, clusters, seed=seed, init=init, weights=weights)  # type: ignore[arg-type]
    assert all(later <= earlier for earlier, later in zip(found.inertia, found.inertia[1:], strict=False))
    assert len(torch.unique(found.assignment)) == clusters
    assert torch.equal(found.assignment, nearest(vectors, found.centroids))


def test_a_weight_of_two_equals_a_duplicate() -> None:
    vectors = blobs(200, 4, 6)
    weights = torch.ones(200)
    weights[:50] = 2
    weighted = kmeans(vectors, 6, seed=1, weights=weights, iterations=30)
    doubled = torch.cat([vectors, vectors[:50]])
    means = [doubled[nearest(doubled, weighted.centroids) == k].mean(0) for k in range(6)]
    torch.testing.assert_close(weighted.centroids, torch.stack(means), atol=1e-4, rtol=1e-4)


def test_one_seed_one_result_and_another_seed_another() -> None:
    vectors = blobs()
    assert torch.equal(kmeans(vectors, 9, seed=5).centroids, kmeans(vectors, 9, seed=5).centroids)
    assert not torch.equal(kmeans(vectors, 9, seed=5).centroids, kmeans(vectors, 9, seed=6).centroids)


def test_identical_vectors_leave_clusters_empty_without_harm() -> None:
    found = kmeans(torch.ones(40, 4), 8, seed=0)
    assert found.inertia[-1] == pytest.approx(0, abs=1e-5)
    assert torch.isfinite(found.centroids).all()


def test_empty_clusters_take_the_worst_placed_vectors() -> None:
    """Sampled starts hit the 60 copies of one vector several times; the five others still get clusters."""
    vectors = torch.cat([torch.zeros(60, 2), torch.arange(1.0, 6.0)[:, None] * torch.tensor([[10.0, -7.0]])])
    found = kmeans(vectors, 6, seed=0, init="sample")
    assert len(torch.unique(found.centroids, dim=0)) == len(torch.unique(found.assignment)) == 6
    assert found.inertia[-1] == 0


def test_too_few_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match="found 3 and 4"):
        kmeans(torch.ones(3, 2), 4, seed=0)


def test_distances_equal_scipy_even_far_from_the_origin() -> None:
    generator = np.random.default_rng(0)
    vectors, codes = generator.normal(size=(50, 16)), generator.normal(size=(7, 16))
    brute = ((vectors[:, None] - codes[None]) ** 2).sum(2)
    ours = squared_distances(torch.tensor(vectors), torch.tensor(codes))
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours.numpy(), brute, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 700])
def test_blocks_do_not_change_a_row(count: int) -> None:
    rows = torch.randn(700, 24, generator=torch.Generator().manual_seed(0))
    codes = torch.randn(50, 24, generator=torch.Generator().manual_seed(1))
    whole = in_blocks(lambda block: squared_distances(block, codes), rows)
    part = in_blocks(lambda block: squared_distances(block, codes), rows[:count])
    assert part.shape == (count, 50)
    assert torch.equal(part, whole[:count])


@pytest.mark.parametrize("count", [0, 1, PASS_ROWS["cpu"], 2 * PASS_ROWS["cpu"] + 7])
def test_passes_hand_out_every_row_once_and_in_order(count: int) -> None:
    rows, names = torch.arange(3 * count).view(count, 3), torch.arange(count)
    parts = list(passes(rows, names))
    assert all(len(part) == len(name) <= PASS_ROWS["cpu"] for part, name in parts)
    assert torch.equal(torch.cat([rows[:0], *(part for part, _ in parts)]), rows)
    assert torch.equal(torch.cat([names[:0], *(name for _, name in parts)]), names)


@pytest.mark.parametrize("penalised", [False, True])
def test_nearest_equals_brute_force_over_several_passes(penalised: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    vectors = torch.randn(2500, 5, generator=generator) + 3
    codes = torch.randn(40, 5, generator=generator) + 3
    penalty = torch.rand(40, generator=generator) if penalised else None
    brute = (vectors.double()[:, None] - codes.double()).square().sum(2)
    brute = brute if penalty is None else brute + penalty
    best = brute.gather(1, nearest(vectors, codes, penalty)[:, None]).squeeze(1)
    torch.testing.assert_close(best, brute.amin(1), rtol=0, atol=1e-5)


def test_nearest_takes_the_lowest_of_equal_codes() -> None:
    codes = torch.randn(1, 6).repeat(30, 1)
    assert nearest(torch.randn(1100, 6), codes).eq(0).all()


def test_means_equal_a_plain_loop_and_an_empty_cluster_stays() -> None:
    vectors = blobs(2300, 5, 7)
    index, mass = torch.arange(2300) % 6, torch.rand(2300, generator=torch.Generator().manual_seed(0)) + 0.1
    before = torch.full((8, 5), 9.0)
    found = cluster_means(vectors, index, before, mass)
    for k in range(6):
        own, weight = vectors[index == k].double(), mass[index == k].double()[:, None]
        torch.testing.assert_close(found[k].double(), (own * weight).sum(0) / weight.sum(), rtol=0, atol=1e-5)
    assert torch.equal(found[6:], before[6:])
    torch.testing.assert_close(cluster_means(vectors, index, before)[3], vectors[index == 3].mean(0))


def test_the_start_never_takes_a_vector_twice_while_others_are_left() -> None:
    """Duplicates are at distance 0 and are not drawn, though a product rounds; 40 distinct vectors, three
    times each, far from the origin."""
    distinct = torch.randn(40, 64, generator=torch.Generator().manual_seed(0)) + 20
    vectors = distinct.repeat(3, 1)
    for seed in range(10):
        start = kmeans(vectors, 40, seed=seed, iterations=0).centroids
        assert len(torch.unique(start, dim=0)) == 40


def test_the_start_is_drawn_in_proportion_to_squared_distances() -> None:
    """From 0 the second of two centroids is 3 rather than 1 in nine of ten draws."""
    vectors = torch.tensor([[0.0], [1.0], [3.0]])
    starts = [kmeans(vectors, 2, seed=seed, iterations=0).centroids.flatten().tolist() for seed in range(900)]
    seconds = [second for first, second in starts if first == 0]
    assert len(seconds) > 200
    assert np.mean([second == 3 for second in seconds]) == pytest.approx(0.9, abs=0.06)
