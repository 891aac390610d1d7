"""Squared Euclidean distances in float32, and blocks of fixed shape that make results independent of
batching.

A matrix product may round differently for different shapes, so the code of an item on the border between two
codes could depend on how many items are encoded with it. `in_blocks` therefore always computes blocks of the
same number of rows and fills the last one up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

BLOCK = 256
"""Rows of a block: small enough that a single item is encoded in milliseconds, large enough for a fast
product."""
PASS_ROWS = {"cpu": 1024}
"""Rows that a pass over many vectors handles at a time: on a processor so few that what it computes on the
way stays in the cache, which makes k-means three times faster; 8192 on other devices."""


def passes(*rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors with the same number N of rows, cut alike into pieces of `PASS_ROWS` rows; none when N = 0."""
    size = PASS_ROWS.get(rows[0].device.type, 8192)
    for start in range(0, len(rows[0]), size):
        yield tuple(tensor[start : start + size] for tensor in rows)


def squared_distances(vectors: Tensor, codebook: Tensor) -> Tensor:
    """``|v|^2 - 2 v.c + |c|^2`` of vectors ``(N, D)`` and code vectors ``(K, D)``: ``(N, K)`` float32, never
    negative."""
    vectors, codebook = vectors.float(), codebook.float()
    with torch.autocast(vectors.device.type, enabled=False):
        product = vectors @ codebook.T
    return (vectors.square().sum(1, keepdim=True) - 2 * product + codebook.square().sum(1)).clamp(min=0)


def nearest(vectors: Tensor, codebook: Tensor, penalty: Tensor | None = None) -> Tensor:
    """``(N,)`` index of the nearest code vector, ties to the lowest index.

    Compares ``|c|^2 - 2 v.c``, as ``|v|^2`` is the same for every code: half the time of `squared_distances`,
    from which it may differ where two codes are equally near but for rounding.

    Args:
        vectors: ``(N, D)``.
        codebook: ``(K, D)``.
        penalty: ``(K,)`` added to the squared distances of each code.
    """
    codebook = codebook.float()
    offset = codebook.square().sum(1) if penalty is None else codebook.square().sum(1) + penalty
    with torch.autocast(vectors.device.type, enabled=False):
        parts = [
            torch.addmm(offset, part.float(), codebook.T, alpha=-2).argmin(1) for (part,) in passes(vectors)
        ]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64, device=vectors.device)


def in_blocks(function: Callable[..., Tensor], *rows: Tensor, block: int = BLOCK) -> Tensor:
    """``function(*rows)`` computed in blocks of exactly `block` rows, concatenated.

    Args:
        function: Maps tensors of `block` rows each to a tensor of `block` rows, every row from its own input
            rows.
        rows: Tensors with the same number N of rows. The last block is filled with zeros.

    Returns:
        ``(N, ...)``; with N = 0 an empty tensor of the right shape.
    """
    count = len(rows[0])
    parts = []
    for start in range(0, max(count, 1), block):
        slices = [_filled(tensor[start : start + block], block) for tensor in rows]
        parts.append(function(*slices)[: count - start])
    return torch.cat(parts)


def _filled(tensor: Tensor, rows: int) -> Tensor:
    """`tensor` with zero rows appended up to `rows`."""
    if len(tensor) == rows:
        return tensor
    return torch.cat([tensor, tensor.new_zeros((rows - len(tensor), *tensor.shape[1:]))])
