"""k-means: Lloyd's algorithm from a k-means++ or sampled start, with weights and without empty clusters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from catalex.quantize.distances import nearest, passes

SEEDING_VECTORS = 64
"""k-means++ looks at most at this many vectors a cluster; more change the start little and cost K passes
each."""
DUPLICATE = 1e-6
"""A squared distance below this share of the squared norms is rounding: the vectors count as equal in the
seeding."""


@dataclass(frozen=True)
class Clusters:
    """Result of k-means.

    Attributes:
        centroids: ``(K, D)`` float32.
        assignment: ``(N,)`` nearest centroid of each vector.
        inertia: Weighted sum of squared distances after each assignment, the start included; never increases.
    """

    centroids: Tensor
    assignment: Tensor
    inertia: list[float]


def kmeans(
    vectors: Tensor,
    clusters: int,
    *,
    seed: int,
    iterations: int = 50,
    init: Literal["k-means++", "sample"] = "k-means++",
    weights: Tensor | None = None,
) -> Clusters:
    """Cluster vectors ``(N, D)``; stops early when no vector changes its cluster.

    An empty cluster takes the vector that is farthest from its centroid, which can only lower the inertia.
    With fewer distinct vectors than clusters the superfluous clusters stay empty. Deterministic for a seed on
    one device.

    Args:
        vectors: ``(N, D)``, on any device.
        clusters: K.
        seed: Fixes the start.
        iterations: Largest number of Lloyd iterations; 0 returns the start.
        init: "k-means++" (Arthur and Vassilvitskii 2007) or "sample", distinct random vectors.
        weights: ``(N,)`` positive weight of each vector; None weighs all alike.

    Raises:
        ValueError: With fewer vectors than clusters.
    """
    if len(vectors) < clusters:
        raise ValueError(
            f"k-means needs at least as many vectors as clusters, found {len(vectors)} and {clusters}"
        )
    vectors = vectors.float()
    mass = (
        torch.ones(len(vectors), device=vectors.device)
        if weights is None
        else weights.float().to(vectors.device)
    )
    centroids = _start(vectors, clusters, mass, init, seed)
    assignment = nearest(vectors, centroids)
    errors = _errors(vectors, centroids, assignment) * mass
    inertia = [float(errors.double().sum())]
    for _ in range(iterations):
        filled = _fill_empty(assignment, errors, clusters)
        moved = cluster_means(vectors, filled, centroids, mass)
        changed = nearest(vectors, moved)
        errors = _errors(vectors, moved, changed) * mass
        total = float(errors.double().sum())
        if total > inertia[-1]:  # rounding at the optimum: the last state was the better one
            break
        settled = torch.equal(changed, assignment)
        centroids, assignment = moved, changed
        inertia.append(total)
        if settled:
            break
    return Clusters(centroids, assignment, inertia)


def _start(vectors: Tensor, clusters: int, mass: Tensor, init: str, seed: int) -> Tensor:
    """``(K, D)`` first centroids, drawn on the CPU so that the choice does not depend on a device's
    generator.

    The distances of k-means++ come from matrix products of centred vectors, which are exact enough to draw
    from and take a tenth of the time of differences.
    """
    generator = torch.Generator().manual_seed(seed)
    if init == "sample":
        return vectors[
            torch.multinomial(mass.cpu(), clusters, generator=generator).to(vectors.device)
        ].clone()
    pool = vectors
    limit = SEEDING_VECTORS * clusters
    if len(vectors) > limit:
        chosen = torch.randperm(len(vectors), generator=generator)[:limit].to(vectors.device)
        pool, mass = vectors[chosen], mass[chosen]
    centred = pool - pool.mean(0)
    norms = centred.square().sum(1)
    picked = [_draw(mass, generator)]
    distance = _from_one(centred, norms, picked[0])
    for _ in range(clusters - 1):
        picked.append(_draw(distance * mass, generator))
        distance = torch.minimum(distance, _from_one(centred, norms, picked[-1]))
    return pool[picked].clone()


def _from_one(centred: Tensor, norms: Tensor, row: int) -> Tensor:
    """``(N,)`` squared distances of ``(N, D)`` with squared norms ``(N,)`` to one row; 0 for duplicates."""
    scale = norms + norms[row]
    distance = scale - 2 * (centred @ centred[row])
    return torch.where(distance > DUPLICATE * scale, distance, 0.0)


def _draw(mass: Tensor, generator: torch.Generator) -> int:
    """An index drawn in proportion to `mass`; uniformly when all mass is zero (only duplicates are left)."""
    heaps = mass.double().cpu().cumsum(0)
    draw = torch.rand((), generator=generator, dtype=torch.float64)
    if heaps[-1] <= 0:
        return int(draw * len(heaps))
    return min(int(torch.searchsorted(heaps, draw * heaps[-1], right=True)), len(heaps) - 1)


def _errors(vectors: Tensor, centroids: Tensor, assignment: Tensor) -> Tensor:
    """``(N,)`` squared distance of each vector to its centroid, by direct difference (no cancellation)."""
    return torch.cat(
        [(part - centroids[index]).square().sum(1) for part, index in passes(vectors, assignment)]
    )


def _fill_empty(assignment: Tensor, errors: Tensor, clusters: int) -> Tensor:
    """`assignment` with the worst-placed vectors moved into the empty clusters, one each."""
    empty = torch.nonzero(torch.bincount(assignment, minlength=clusters) == 0).squeeze(1)
    if not len(empty):
        return assignment
    worst = torch.argsort(errors, descending=True, stable=True)[: len(empty)]
    worst = worst[errors[worst] > 0]
    filled = assignment.clone()
    filled[worst] = empty[: len(worst)]
    return filled


def cluster_means(
    vectors: Tensor, assignment: Tensor, centroids: Tensor, mass: Tensor | None = None
) -> Tensor:
    """``(K, D)`` mean of each cluster, summed in float64; an empty cluster keeps its centroid.

    Args:
        vectors: ``(N, D)``.
        assignment: ``(N,)`` cluster of each vector.
        centroids: ``(K, D)`` those of empty clusters.
        mass: ``(N,)`` weights of the vectors; None weighs all alike.
    """
    clusters = len(centroids)
    mass = torch.ones(len(vectors), device=vectors.device) if mass is None else mass
    sums = torch.zeros(centroids.shape, dtype=torch.float64, device=vectors.device)
    totals = torch.zeros(clusters, dtype=torch.float64, device=vectors.device)
    for part, index, weight in passes(vectors, assignment, mass):
        weighted, weight = (part * weight[:, None]).double(), weight.double()
        if vectors.device.type == "cpu":
            sums.index_add_(0, index, weighted)
            totals.index_add_(0, index, weight)
        else:  # scattered additions have no fixed order on a GPU; a product has
            member = torch.nn.functional.one_hot(index, clusters).double().T
            sums += member @ weighted
            totals += member @ weight
    means = (sums / totals.clamp(min=1e-30)[:, None]).float()
    return torch.where((totals > 0)[:, None], means, centroids)
