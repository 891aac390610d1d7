"""Balanced assignment: a penalty on every code vector that is in too great demand.

Vectors that lie elsewhere than the code vectors fall on few of them. Entropic optimal transport (Cuturi 2013)
finds how much to add to the distances of a code so that no code gets more than its share.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from catalex.quantize.distances import nearest, passes, squared_distances
from catalex.quantize.kmeans import cluster_means

PENALTY_ROWS = 16384
"""Vectors at most that the penalties are found from; more change them little."""
LEAST = 1e-37
"""Smallest demand that has a logarithm; a code without any loses its penalty all the same, over rounds."""


def balanced_penalty(
    vectors: Tensor,
    codebook: Tensor,
    *,
    start: Tensor | None = None,
    softness: float = 0.05,
    iterations: int = 30,
) -> Tensor:
    """``(K,)`` penalties >= 0, in squared distance, for the code vectors ``(K, D)`` and vectors ``(N, D)``.

    With them added to the squared distances, the soft assignment gives no code more than
    ``max(1, N / K)`` vectors. A code within its share has none; with a single vector all are zero.

    Args:
        vectors: ``(N, D)``.
        codebook: ``(K, D)``.
        start: Penalties to begin with, from a similar problem.
        softness: Temperature of the soft assignment, as a share of the mean squared distance; ours.
        iterations: Sinkhorn iterations.
    """
    distances = squared_distances(vectors, codebook)
    unit = distances.mean().clamp(min=1e-12)
    scaled = -distances / (unit * softness)
    room = math.log(max(1.0, len(vectors) / len(codebook)))
    penalty = (
        torch.zeros(len(codebook), device=vectors.device) if start is None else start / (unit * softness)
    )
    for _ in range(iterations):
        shares = torch.stack([torch.softmax(part - penalty, 1).sum(0) for (part,) in passes(scaled)])
        demand = shares.sum(0).clamp(min=LEAST).log()
        penalty = (penalty + demand - room).clamp(min=0)
    return penalty * unit * softness


def balanced_codebook(vectors: Tensor, codebook: Tensor, rounds: int = 10) -> Tensor:
    """``(K, D)`` code vectors, moved so that none of them serves much more than its share of ``(N, D)``.

    Lloyd iterations with `balanced_penalty` in the assignment. Plain k-means spends codes on outliers: among
    residuals, most of which are small, a few codes then serve nearly all vectors.

    Args:
        vectors: ``(N, D)``.
        codebook: ``(K, D)`` to begin with, from k-means.
        rounds: Lloyd iterations; ours.
    """
    penalty = None
    sample = vectors[:: max(len(vectors) // PENALTY_ROWS, 1)]
    for _ in range(rounds):
        # ten iterations from here on would do for the error, but small catalogues then collide more
        penalty = balanced_penalty(sample, codebook, start=penalty)
        codebook = cluster_means(vectors.float(), nearest_but(vectors, codebook, penalty), codebook)
    return codebook


def nearest_but(vectors: Tensor, codebook: Tensor, penalty: Tensor) -> Tensor:
    """``(N,)`` code with the least squared distance plus penalty, ties to the lowest index."""
    return nearest(vectors, codebook, penalty)
