"""Balanced assignment: a penalty on every code vector that is in too great demand.

Vectors that lie elsewhere than the code vectors fall on few of them. Entropic optimal transport (Cuturi 2013)
finds how much to add to the distances of a code so that no code gets more than its share.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from catalex.quantize.distances import squared_distances

PENALTY_ROWS = 16384
"""Vectors at most that the penalties are found from; more change them little."""


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
        demand = torch.log_softmax(scaled - penalty, 1).logsumexp(0)
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
        penalty = balanced_penalty(sample, codebook, start=penalty)
        member = functional.one_hot(nearest_but(vectors, codebook, penalty), len(codebook)).to(codebook)
        counts = member.sum(0)
        means = (member.T @ vectors.float()) / counts.clamp(min=1)[:, None]
        codebook = torch.where((counts > 0)[:, None], means, codebook)
    return codebook


def nearest_but(vectors: Tensor, codebook: Tensor, penalty: Tensor, rows: int = 8192) -> Tensor:
    """``(N,)`` code with the least squared distance plus penalty, ties to the lowest index."""
    parts = [
        (squared_distances(part, codebook) + penalty).argmin(1) for part in torch.split(vectors.float(), rows)
    ]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64, device=vectors.device)
