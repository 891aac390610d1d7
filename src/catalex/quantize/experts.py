"""Several groups of residual codebooks side by side; each vector is quantized by the group it is sent to."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from catalex.quantize.balanced import balanced_codebook
from catalex.quantize.distances import lowest, squared_distances
from catalex.quantize.kmeans import kmeans
from catalex.quantize.vq import Reduction

PLACING_ROWS = 2**17
"""Vectors at most that an expert's codebooks are placed by; a random sample of more gives nearly the same."""


class ExpertQuantized(NamedTuple):
    """What experts make of vectors ``(B, d)``.

    Attributes:
        codes: ``(B, L)``.
        vectors: ``(B, d)`` sums of the chosen code vectors; carries gradient to the codebooks only.
        losses: ``(B,)`` codebook and commitment loss of each vector, over all levels.
    """

    codes: Tensor
    vectors: Tensor
    losses: Tensor


class ExpertCodebooks(nn.Module):
    """E experts, each a group of L residual codebooks of T code vectors of width d. No network inside.

    Args:
        experts: E.
        levels: L.
        size: T.
        width: d.
        commitment: Weight mu of the commitment term.
        reduction: "sum" adds squared differences over d, "mean" averages them.
    """

    used: Tensor

    def __init__(
        self, experts: int, levels: int, size: int, width: int, *, commitment: float, reduction: Reduction
    ) -> None:
        super().__init__()
        self.experts, self.levels, self.size, self.width = experts, levels, size, width
        self.commitment, self.reduction = commitment, reduction
        self.weight = nn.Parameter(torch.randn(experts, levels, size, width) / width**0.5)
        self.register_buffer("used", torch.zeros(experts, levels, size, dtype=torch.int64))

    def forward(self, vectors: Tensor, experts: Tensor, *, count: bool = True) -> ExpertQuantized:
        """Quantize ``(B, d)`` with experts ``(B,)``; in training mode also counts the use of codes.

        The residual subtracts the raw code vector, as the formula does.
        """
        rest, total = vectors, torch.zeros_like(vectors)
        losses, codes = vectors.new_zeros(len(vectors)), []
        for level in range(self.levels):
            index = self.nearest(rest, experts, level)
            chosen = self.look_up(experts, index, level)
            codebook = self._reduce(rest.detach() - chosen)
            losses = losses + codebook + self.commitment * self._reduce(rest - chosen.detach())
            rest, total = rest - chosen, total + chosen
            codes.append(index)
        found = torch.stack(codes, 1)
        if self.training and count:
            self._count(found, experts)
        return ExpertQuantized(found, total, losses)

    @torch.no_grad()
    def nearest(self, rest: Tensor, experts: Tensor, level: int) -> Tensor:
        """``(B,)`` nearest code of each expert's codebook at `level`; ties to the lowest code."""
        return lowest(self.distances(rest, experts, level))

    @torch.no_grad()
    def distances(self, rest: Tensor, experts: Tensor, level: int) -> Tensor:
        """``(B, T)`` squared distances of residuals ``(B, d)`` to the codes of their experts at `level`.

        Trained, on a processor, only experts that a vector is sent to are compared: items of one domain go to
        few. Products keep their shape, so that what is encoded together changes nothing.
        """
        if not self.training and rest.device.type == "cpu":
            found = rest.new_empty(len(rest), self.size, dtype=torch.float32)
            for expert in torch.unique(experts).tolist():
                rows = torch.nonzero(experts == expert).squeeze(1)
                found[rows] = squared_distances(rest.detach(), self.weight[expert, level])[rows]
            return found
        # one product over all experts costs less than gathering a codebook for every row
        table = squared_distances(rest.detach(), self.weight[:, level].reshape(-1, self.width))
        rows = torch.arange(len(rest), device=rest.device)
        return table.view(len(rest), self.experts, self.size)[rows, experts]

    @torch.no_grad()
    def residual(self, vectors: Tensor, experts: Tensor, prefix: Tensor) -> Tensor:
        """``(B, d)`` what the first l codes ``(B, l)`` leave over of vectors ``(B, d)``."""
        rest = vectors.float()
        for level in range(prefix.shape[1]):
            rest = rest - self.look_up(experts, prefix[:, level], level)
        return rest

    def look_up(self, experts: Tensor, codes: Tensor, level: int) -> Tensor:
        """``(B, d)`` code vectors of codes ``(B,)`` at `level`."""
        row = (experts * self.levels + level) * self.size + codes
        # not indexing: its gradient is added up by threads in the order in which they arrive
        return functional.embedding(row, self.weight.view(-1, self.width))

    def sums(self, experts: Tensor, codes: Tensor) -> Tensor:
        """``(B, d)`` sum of the code vectors of codes ``(B, L)``."""
        total = self.look_up(experts, codes[:, 0], 0)
        for level in range(1, codes.shape[1]):
            total = total + self.look_up(experts, codes[:, level], level)
        return total

    def _reduce(self, difference: Tensor) -> Tensor:
        squares = difference.square()
        return squares.sum(1) if self.reduction == "sum" else squares.mean(1)

    @torch.no_grad()
    def _count(self, codes: Tensor, experts: Tensor) -> None:
        levels = torch.arange(self.levels, device=codes.device)
        rows = ((experts[:, None] * self.levels + levels) * self.size + codes).flatten()
        self.used += torch.bincount(rows, minlength=self.used.numel()).view_as(self.used)

    @torch.no_grad()
    def initialise(
        self, expert: int, vectors: Tensor, spare: Tensor, seed: int, *, balanced: bool = False
    ) -> None:
        """Place the codebooks of one expert by k-means on ``(N, d)``, level by level on the residuals; with
        `balanced` so that all codes serve about equally many.

        With fewer vectors than codes every vector becomes a code, and the codes left over start on random
        residuals of `spare` ``(M, d)``.
        """
        rest, other = _sample(vectors, seed).float(), _sample(spare, seed).float()
        for level in range(self.levels):
            count = min(len(rest), self.size)
            found = kmeans(rest, count, seed=seed + level, iterations=20).centroids
            if balanced:
                found = balanced_codebook(rest, found)
            if count < self.size:
                generator = torch.Generator().manual_seed(seed + level)
                rows = torch.randint(len(other), (self.size - count,), generator=generator)
                found = torch.cat([found, other[rows.to(other.device)]])
            self.weight.data[expert, level] = found.to(self.weight)
            rest, other = (part - found[squared_distances(part, found).argmin(1)] for part in (rest, other))

    @torch.no_grad()
    def revive(self, vectors: Tensor, experts: Tensor, seed: int) -> Tensor:
        """Move every code that was not chosen since the last call onto a random residual of the vectors
        ``(N, d)`` that are sent to its expert ``(N,)``; an expert without vectors is left alone.

        Returns:
            ``(E, L)`` share of codes that were in use. The counts start anew.
        """
        shares = (self.used > 0).float().mean(2)
        generator, rest = torch.Generator().manual_seed(seed), vectors.float()
        members = [torch.nonzero(experts == expert).squeeze(1) for expert in range(self.experts)]
        for level in range(self.levels):
            for expert, rows in enumerate(members):
                dead = torch.nonzero(self.used[expert, level] == 0).squeeze(1)
                if len(dead) and len(rows):
                    drawn = torch.randint(len(rows), (len(dead),), generator=generator).to(rows.device)
                    self.weight.data[expert, level, dead] = rest[rows[drawn]].to(self.weight)
            rest = rest - self.look_up(experts, self.nearest(rest, experts, level), level)
        self.used.zero_()
        return shares

    def utilisation(self) -> Tensor:
        """``(E, L)`` share of codes in use since the last call; the counts start anew."""
        shares = (self.used > 0).float().mean(2)
        self.used.zero_()
        return shares


def _sample(vectors: Tensor, seed: int) -> Tensor:
    """At most `PLACING_ROWS` of the vectors ``(N, d)``, drawn at random."""
    if len(vectors) <= PLACING_ROWS:
        return vectors
    chosen = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))[:PLACING_ROWS]
    return vectors[chosen.to(vectors.device)]
