"""Residual quantization: each level quantizes what the levels before it left over.

``r_0 = v``, ``c_l = argmin_k |r_{l-1} - e_{l,k}|^2``, ``r_l = r_{l-1} - e_{l,c_l}``; the sum of the chosen
code vectors is the reconstruction. Codebooks are given; `kmeans` and `vq` learn them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from catalex.quantize.distances import squared_distances


def residual_encode(vectors: Tensor, codebooks: Sequence[Tensor]) -> Tensor:
    """Codes ``(N, L)`` int64 of vectors ``(N, D)`` under L codebooks ``(K_l, D)``; ties to the lowest
    index."""
    rest = vectors.float()
    codes = []
    for codebook in codebooks:
        chosen = squared_distances(rest, codebook).argmin(1)
        rest = rest - codebook[chosen]
        codes.append(chosen)
    return torch.stack(codes, 1)


def residual(vectors: Tensor, prefix: Tensor, codebooks: Sequence[Tensor]) -> Tensor:
    """``(N, D)`` what the first l codes ``(N, l)`` leave over, subtracted in the order of
    `residual_encode`."""
    rest = vectors.float()
    for level in range(prefix.shape[1]):
        rest = rest - codebooks[level][prefix[:, level]]
    return rest


def residual_distances(vectors: Tensor, prefix: Tensor, codebooks: Sequence[Tensor]) -> Tensor:
    """``(N, K_l)`` squared distances to the codes of level l = width of `prefix` ``(N, l)``."""
    return squared_distances(residual(vectors, prefix, codebooks), codebooks[prefix.shape[1]])


def reconstruct(codes: Tensor, codebooks: Sequence[Tensor]) -> Tensor:
    """``(N, D)`` sum of the chosen code vectors; codes ``(N, l)`` may stop at any level l >= 1."""
    return cumulative(codes, codebooks)[:, -1]


def cumulative(codes: Tensor, codebooks: Sequence[Tensor]) -> Tensor:
    """``(N, l, D)`` reconstruction after each of the l levels of codes ``(N, l)``."""
    chosen = [codebooks[level][codes[:, level]] for level in range(codes.shape[1])]
    return torch.stack(chosen, 1).cumsum(1)
