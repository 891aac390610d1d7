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


class CodeTable:
    """A codebook ``(K, D)`` made ready for many blocks: what depends on it alone is computed once.

    Attributes:
        codebook: ``(K, D)`` float32.
        minus_twice: ``(D, K)``, the codebook times -2, which changes no digit of a product.
        squares: ``(K,)`` squared length of each code vector.
    """

    def __init__(self, codebook: Tensor) -> None:
        self.codebook = codebook.float()
        self.minus_twice = (-2 * self.codebook).T
        self.squares = self.codebook.square().sum(1)

    def distances(self, vectors: Tensor) -> Tensor:
        """``|v|^2 - 2 v.c + |c|^2`` of vectors ``(N, D)``: ``(N, K)`` float32, never negative."""
        vectors = vectors.float()
        with torch.autocast(vectors.device.type, enabled=False):
            table = vectors @ self.minus_twice
        # in place: a table of its own for every term costs more in memory than the product in arithmetic
        return table.add_(vectors.square().sum(1, keepdim=True)).add_(self.squares).clamp_(min=0)

    @torch.no_grad()
    def nearest(self, vectors: Tensor, table: Tensor, spare: Tensor) -> Tensor:
        """``(N,)`` index of the nearest code vector by `distances`, ties to the lowest index.

        On other devices than processors by ``|c|^2 - 2 v.c``, which leaves out what all codes share: there a
        pass over the table costs as much as the product.

        Args:
            vectors: ``(N, D)`` float32.
            table: ``(N, K)``, overwritten with the distances. Memory that a processor's cache holds already
                costs less than what the system hands out anew for every block.
            spare: ``(N, D)``, overwritten.
        """
        with torch.autocast(vectors.device.type, enabled=False):
            if vectors.device.type != "cpu":
                return lowest(torch.addmm(self.squares, vectors, self.minus_twice, out=table))
            torch.mm(vectors, self.minus_twice, out=table)
        squares = torch.square(vectors, out=spare).sum(1, keepdim=True)
        return lowest(table.add_(squares).add_(self.squares).clamp_(min=0))


def squared_distances(vectors: Tensor, codebook: Tensor) -> Tensor:
    """``|v|^2 - 2 v.c + |c|^2`` of vectors ``(N, D)`` and code vectors ``(K, D)``: ``(N, K)`` float32, never
    negative."""
    return CodeTable(codebook).distances(vectors)


def lowest(table: Tensor) -> Tensor:
    """``(N,)`` column of the smallest value in each row of ``(N, K)``, the first one of several."""
    if table.device.type == "cpu":  # NumPy compares a vector register at a time, PyTorch value by value
        return torch.from_numpy(table.detach().numpy().argmin(1))
    return table.argmin(1)


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
            lowest(torch.addmm(offset, part.float(), codebook.T, alpha=-2)) for (part,) in passes(vectors)
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
