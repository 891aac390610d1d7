"""Balanced code vectors: no code serves much more than its share, and nothing is lost by it."""

from __future__ import annotations

import torch
from torch import Tensor

from catalex.quantize import kmeans, nearest
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
