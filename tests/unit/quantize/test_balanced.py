"""Balanced code vectors: no code serves much more than its share, and nothing is lost by it."""

from __future__ import annotations

import torch
from torch import Tensor

from catalex.quantize import kmeans, nearest, squared_distances
from catalex.quantize.balanced import balanced_codebook, balanced_penalty


def skewed(seed: int = 0) -> Tensor:
    """A dense heap and a few far outliers, as residuals are: plain k-means spends codes on the outliers."""
    generator = torch.Generator().manual_seed(seed)
    heap = 0.1 * torch.randn(900, 6, generator=generator)
    return torch.cat([heap, 5 * torch.randn(60, 6, generator=generator)])


def largest_share(vectors: Tensor, codebook: Tensor) -> float:
    counts = torch.bincount(nearest(vectors, codebook), minlength=len(codebook))
    return float(counts.max() / len(vectors))


def test_a_heap_is_shared_among_more_codes() -> None:
    vectors = skewed()
    plain = kmeans(vectors, 32, seed=0).centroids
    balanced = balanced_codebook(vectors, plain)
    assert largest_share(vectors, plain) > 0.5
    assert largest_share(vectors, balanced) < 0.4 * largest_share(vectors, plain)


def test_the_relative_error_of_the_heap_falls() -> None:
    vectors = skewed()
    plain = kmeans(vectors, 32, seed=0).centroids
    balanced = balanced_codebook(vectors, plain)
    heap = vectors[:900]
    errors = [float((heap - book[nearest(heap, book)]).square().sum()) for book in (plain, balanced)]
    assert errors[1] < 0.9 * errors[0]


def test_even_clusters_stay_as_they_are() -> None:
    generator = torch.Generator().manual_seed(1)
    centres = 10 * torch.randn(8, 4, generator=generator)
    vectors = (centres[:, None] + 0.1 * torch.randn(8, 50, 4, generator=generator)).flatten(0, 1)
    means = vectors.view(8, 50, 4).mean(1)
    torch.testing.assert_close(balanced_codebook(vectors, means), means, rtol=0, atol=1e-4)


def test_it_is_deterministic_and_finite_on_odd_inputs() -> None:
    vectors = skewed()
    plain = kmeans(vectors, 16, seed=0).centroids
    torch.testing.assert_close(
        balanced_codebook(vectors, plain), balanced_codebook(vectors, plain), rtol=0, atol=0
    )
    same = torch.ones(20, 3)
    assert torch.isfinite(balanced_codebook(same, torch.cat([same[:1], torch.zeros(3, 3)]))).all()
    one = balanced_codebook(torch.ones(1, 3), torch.zeros(4, 3))
    assert torch.isfinite(one).all()


def test_no_rounds_change_nothing() -> None:
    vectors = skewed()
    plain = kmeans(vectors, 8, seed=0).centroids
    assert balanced_codebook(vectors, plain, rounds=0) is plain


def test_penalties_are_felt_only_by_codes_in_demand() -> None:
    vectors = skewed()
    penalty = balanced_penalty(vectors, kmeans(vectors, 32, seed=0).centroids)
    assert (penalty >= 0).all()
    assert (penalty > 0).any()
    assert (penalty == 0).any()


def test_penalties_equal_sinkhorn_in_logarithms() -> None:
    """The plain formula in float64, one matrix, no passes."""
    vectors = skewed().repeat(2, 1)
    codebook = kmeans(vectors, 32, seed=0).centroids
    distances = squared_distances(vectors, codebook).double()
    unit = 0.05 * distances.mean()
    expected = torch.zeros(32, dtype=torch.float64)
    for _ in range(30):
        demand = torch.log_softmax(-distances / unit - expected, 1).logsumexp(0)
        expected = (expected + demand - torch.tensor(len(vectors) / 32.0).log()).clamp(min=0)
    found = balanced_penalty(vectors, codebook)
    torch.testing.assert_close(found.double(), expected * unit, rtol=1e-3, atol=1e-4)


def test_no_code_is_asked_for_more_than_its_share() -> None:
    vectors = skewed()
    codebook = kmeans(vectors, 32, seed=0).centroids
    penalty = balanced_penalty(vectors, codebook, iterations=300)
    distances = squared_distances(vectors, codebook)
    demand = torch.softmax(-(distances + penalty) / (0.05 * distances.mean()), 1).sum(0)
    assert float(demand.max()) < 1.05 * len(vectors) / 32


def test_a_code_that_nobody_wants_loses_a_penalty_it_was_given() -> None:
    """Its demand is smaller than the smallest float. What all codes have in common decides nothing."""
    codebook, start = torch.tensor([[0.0], [1.0]]), torch.tensor([0.0, 1000.0])
    vectors = torch.tensor([[0.0], [0.1], [0.9], [1.0]])
    penalty = balanced_penalty(vectors, codebook, start=start, iterations=3000)
    assert torch.isfinite(penalty).all()
    assert nearest(vectors, codebook, penalty).tolist() == [0, 0, 1, 1]
