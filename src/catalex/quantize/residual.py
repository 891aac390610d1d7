"""Residual quantization: each level quantizes what the levels before it left over.

``r_0 = v``, ``c_l = argmin_k |r_{l-1} - e_{l,k}|^2``, ``r_l = r_{l-1} - e_{l,c_l}``; the sum of the chosen
code vectors is the reconstruction. Codebooks are given; `kmeans` and `vq` learn them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from catalex.quantize.distances import CodeTable, squared_distances


def residual_encode(vectors: Tensor, codebooks: Sequence[Tensor]) -> Tensor:
    """Codes ``(N, L)`` int64 of vectors ``(N, D)`` under L codebooks ``(K_l, D)``; ties to the lowest
    index."""
    return residual_encoder(codebooks)(vectors)


def residual_encoder(codebooks: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    """`residual_encode` under fixed codebooks, for many blocks of vectors, best of equal sizes: memory is
    kept from block to block, so threads must not share the function."""
    tables = [CodeTable(codebook) for codebook in codebooks]
    kept: list[Tensor] = []

    @torch.no_grad()
    def encode(vectors: Tensor) -> Tensor:
        rest = vectors.float()
        codes: list[Tensor] = []
        if not kept or len(kept[0]) != len(rest):
            kept[:] = [torch.empty_like(rest), torch.empty_like(rest)]
            kept.extend(rest.new_empty(len(rest), len(table.squares)) for table in tables)
        left, spare, *distances = kept
        for level, table in enumerate(tables):
            if level:
                torch.index_select(tables[level - 1].codebook, 0, codes[-1], out=spare)
                rest = torch.sub(rest, spare, out=left)
            codes.append(table.nearest(rest, distances[level], spare))
        return torch.stack(codes, 1)

    return encode


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
