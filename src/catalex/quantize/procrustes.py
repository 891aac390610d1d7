"""Fitting new vectors to codebooks that exist already: rotate the vectors onto them, then refine them.

Orthogonal Procrustes (Schönemann 1966) alternated with assignment: with codes given, the best rotation has a
closed form; with the rotation given, the codes are the nearest ones. Lloyd iterations then move the code
vectors to where the new vectors are. An index thus keeps its neighbourhood as far as the vectors allow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from catalex.quantize.balanced import balanced_penalty, nearest_but
from catalex.quantize.distances import nearest
from catalex.quantize.residual import reconstruct, residual_encode


@dataclass(frozen=True)
class Motion:
    """``v -> (v - mean) @ rotation + target`` and back: a rigid motion, which keeps all distances.

    Attributes:
        mean: ``(D,)`` subtracted first.
        rotation: ``(D, D)`` orthogonal; may hold a reflection.
        target: ``(D,)`` added last.
    """

    mean: Tensor
    rotation: Tensor
    target: Tensor

    @classmethod
    def none(cls, width: int) -> Self:
        """The motion that leaves vectors of `width` where they are."""
        return cls(torch.zeros(width), torch.eye(width), torch.zeros(width))

    def __call__(self, vectors: Tensor) -> Tensor:
        """``(N, D)`` moved vectors of ``(N, D)``."""
        return (vectors.float() - self.mean) @ self.rotation + self.target

    def invert(self, vectors: Tensor) -> Tensor:
        """``(N, D)`` vectors of moved ``(N, D)``, exact but for rounding."""
        return (vectors.float() - self.target) @ self.rotation.T + self.mean


def procrustes(vectors: Tensor, wanted: Tensor, stay: float = 0.0) -> Tensor:
    """``(D, D)`` the orthogonal R with the least ``|vectors R - wanted|^2 + stay |R - 1|^2``, in float64.

    Args:
        vectors: ``(N, D)``.
        wanted: ``(N, D)`` where each of them should come to lie.
        stay: Pull towards the identity, in squared units of the vectors. A little of it decides what the
            vectors leave open: with fewer vectors than D, directions that none of them has do not move.
    """
    product = vectors.double().T @ wanted.double()
    left, _, right = torch.linalg.svd(product + stay * torch.eye(len(product), dtype=torch.float64))
    rotation: Tensor = left @ right
    return rotation


@dataclass(frozen=True)
class Fitted:
    """Result of `rotate_onto`.

    Attributes:
        motion: What moves the vectors onto the codebooks.
        penalty: ``(K_1,)`` penalties of the first codes under which it was found.
        errors: Mean squared error of each round, the start included.
    """

    motion: Motion
    penalty: Tensor
    errors: list[float]


def rotate_onto(
    vectors: Tensor,
    codebooks: Sequence[Tensor],
    start: Motion,
    *,
    rounds: int,
    stay: float = 1e-6,
    balance: float = 1.0,
) -> Fitted:
    """Move vectors ``(N, D)`` rigidly onto L codebooks ``(K_l, D)``; the best round counts.

    Every round assigns residual codes over all levels, then solves for the rotation and the target (the mean
    of the reconstructions). Without balance the vectors crowd onto ever fewer first codes, since each round
    draws them closer to those that they have. Assignment is greedy, so the error may rise again; the search
    ends when it has not fallen for five rounds, or when no code changes.

    Args:
        vectors: ``(N, D)``.
        codebooks: L codebooks of residual quantization.
        start: First motion; its mean stays.
        rounds: Largest number of rounds; 0 returns the start.
        stay: Pull towards the identity, as a share of the vectors' total variance; see `procrustes`.
        balance: Share of `balanced_penalty` that counts when the first codes are assigned, 0 to 1.
    """
    centred = vectors.double() - start.mean.double()
    pull = stay * float(centred.square().sum()) + 1e-12
    motion, moved = start, start(vectors)
    penalty = balance * balanced_penalty(moved, codebooks[0])
    codes = _encode(moved, codebooks, penalty)
    errors = [_error(moved, codes, codebooks)]
    best, waited = Fitted(motion, penalty, errors), 0
    for _ in range(rounds):
        wanted = reconstruct(codes, codebooks).double()
        target = wanted.mean(0)
        rotation = procrustes(centred, wanted - target, pull)
        motion = Motion(start.mean, rotation.float(), target.float())
        moved = motion(vectors)
        if balance > 0:  # the last penalties are nearly right already
            last = penalty / balance
            penalty = balance * balanced_penalty(moved, codebooks[0], start=last, iterations=10)
        before, codes = codes, _encode(moved, codebooks, penalty)
        errors.append(_error(moved, codes, codebooks))
        waited = 0 if errors[-1] < min(errors[:-1]) else waited + 1
        if not waited:
            best = Fitted(motion, penalty, errors)
        if waited == 5 or torch.equal(before, codes):
            break
    return best


def lloyd(vectors: Tensor, codebook: Tensor, iterations: int, chosen: Tensor | None = None) -> Tensor:
    """``(K, D)`` code vectors after Lloyd iterations on ``(N, D)`` from `codebook`.

    Unlike k-means, a code without vectors stays where it is: it keeps its meaning for vectors to come.

    Args:
        vectors: ``(N, D)``.
        codebook: ``(K, D)``.
        iterations: Largest number of iterations; 0 returns `codebook`.
        chosen: ``(N,)`` first assignment; None takes the nearest code vectors.
    """
    chosen = nearest(vectors, codebook) if chosen is None else chosen
    for _ in range(iterations):
        sums = torch.zeros(codebook.shape, dtype=torch.float64).index_add_(0, chosen, vectors.double())
        counts = torch.bincount(chosen, minlength=len(codebook))[:, None]
        codebook = torch.where(counts > 0, (sums / counts.clamp(min=1)).float(), codebook)
        before, chosen = chosen, nearest(vectors, codebook)
        if torch.equal(before, chosen):
            break
    return codebook


def refine(
    vectors: Tensor, codebooks: Sequence[Tensor], iterations: int, penalty: Tensor | None = None
) -> list[Tensor]:
    """L codebooks after Lloyd iterations level by level, each on what the refined ones before leave over.

    Args:
        vectors: ``(N, D)``.
        codebooks: L codebooks ``(K_l, D)``.
        iterations: Lloyd iterations a level.
        penalty: ``(K_1,)`` added to the squared distances of the first codes in the first assignment.
    """
    rest, refined = vectors.float(), []
    for level, codebook in enumerate(codebooks):
        first = nearest_but(rest, codebook, penalty) if level == 0 and penalty is not None else None
        refined.append(lloyd(rest, codebook, iterations, first))
        rest = rest - refined[-1][nearest(rest, refined[-1])]
    return refined


def _encode(vectors: Tensor, codebooks: Sequence[Tensor], penalty: Tensor) -> Tensor:
    """Codes ``(N, L)``, the first ones with the penalty."""
    first = nearest_but(vectors, codebooks[0], penalty)
    if len(codebooks) == 1:
        return first[:, None]
    rest = vectors - codebooks[0][first]
    return torch.cat([first[:, None], residual_encode(rest, codebooks[1:])], 1)


def _error(vectors: Tensor, codes: Tensor, codebooks: Sequence[Tensor]) -> float:
    return float((vectors - reconstruct(codes, codebooks)).square().sum(1).double().mean())
