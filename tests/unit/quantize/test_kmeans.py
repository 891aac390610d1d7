"""k-means against scikit-learn and against its own promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans as Oracle

from catalex.quantize import in_blocks, kmeans, nearest, squared_distances


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
