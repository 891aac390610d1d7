"""Bounds of cluster sizes, against the optimal assignment by SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from catalex.quantize.constrained import bounded_assignment, constrained_kmeans


def optimal(distances: torch.Tensor, smallest: int, largest: int) -> float:
    """The least sum of distances within the bounds: one slot a place, the first `smallest` must be filled."""
    table = distances.double().numpy()
    bonus = table.sum() + 1
    slots = np.repeat(table, largest, axis=1)
    must = np.tile(np.arange(largest) < smallest, table.shape[1])
    rows, columns = linear_sum_assignment(slots - bonus * must)
    return float(slots[rows, columns].sum())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(0, 3), st.integers(0, 4))
def test_sizes_are_within_the_bounds_and_the_sum_near_the_best(
    seed: int, clusters: int, smallest: int, slack: int
) -> None:
    count = 24
    largest = -(-count // clusters) + slack
    distances = torch.rand(count, clusters, generator=torch.Generator().manual_seed(seed))
    found = bounded_assignment(distances, smallest, largest)
    sizes = torch.bincount(found, minlength=clusters)
    assert int(sizes.min()) >= smallest
    assert int(sizes.max()) <= largest
    total = float(distances.gather(1, found[:, None]).sum())
    best = optimal(distances, smallest, largest)
    assert best - 1e-5 <= total <= 1.6 * best + 0.5


def test_without_binding_bounds_every_vector_takes_its_nearest_cluster() -> None:
    distances = torch.rand(50, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(bounded_assignment(distances, 0, 50), distances.argmin(1))


def test_clusters_of_code_vectors_cover_all_codes() -> None:
    codes = torch.randn(256, 32, generator=torch.Generator().manual_seed(0))
    codes[:200] *= 0.01  # most of them in one place
    found = constrained_kmeans(codes, 10, 10, 60, seed=0)
    sizes = torch.bincount(found.assignment, minlength=10)
    assert int(sizes.sum()) == 256
    assert int(sizes.min()) >= 10
    assert int(sizes.max()) <= 60
    again = constrained_kmeans(codes, 10, 10, 60, seed=0)
    assert torch.equal(found.assignment, again.assignment)


def test_separate_groups_are_found() -> None:
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    rows = centres.repeat_interleave(8, 0) + 0.1 * torch.randn(
        24, 2, generator=torch.Generator().manual_seed(3)
    )
    found = constrained_kmeans(rows, 3, 4, 12, seed=1).assignment.view(3, 8)
    assert all(len(set(group.tolist())) == 1 for group in found)
    assert len({int(group[0]) for group in found}) == 3


def test_impossible_bounds_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit into 4 clusters of 3 to 5"):
        constrained_kmeans(torch.randn(11, 2), 4, 3, 5, seed=0)
