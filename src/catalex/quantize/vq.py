"""A learned codebook: nearest-code lookup with the losses, updates and rescues that keep it in use.

Losses as in VQ-VAE (van den Oord et al. 2017) and TIGER (2305.05065): the codebook term pulls the chosen code
to the vector, the commitment term, weighted by beta, pulls the vector to its code.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from catalex.quantize.distances import nearest
from catalex.quantize.kmeans import kmeans

Reduction = Literal["sum", "mean"]


class Quantized(NamedTuple):
    """What a codebook makes of vectors ``(B, D)``.

    Attributes:
        codes: ``(B,)`` index of the nearest code, or of the one that was given.
        vectors: ``(B, D)`` the chosen code vectors themselves; carries gradient to the codebook only.
        loss: Codebook and commitment loss, a scalar.
    """

    codes: Tensor
    vectors: Tensor
    loss: Tensor


def straight_through(vectors: Tensor, quantized: Tensor) -> Tensor:
    """The value of `quantized` with the gradient of `vectors` (identity)."""
    return vectors + (quantized - vectors).detach()


class Codebook(nn.Module):
    """K code vectors of width D, learned by gradient or by exponential moving averages.

    Args:
        size: K.
        width: D.
        beta: Weight of the commitment term. 0.25 in TIGER.
        decay: None learns by gradient; a number in (0, 1] by moving averages of that decay (0.99 in MTGRec),
            and then the loss keeps the commitment term only.
        reduction: "sum" adds the squared differences over D as the formula says; "mean" averages them, as
            LC-Rec's and UTGRec's code does. Both average over the batch.
    """

    weight: Tensor
    used: Tensor
    count: Tensor
    total: Tensor

    def __init__(
        self,
        size: int,
        width: int,
        *,
        beta: float = 0.25,
        decay: float | None = None,
        reduction: Reduction = "sum",
    ) -> None:
        super().__init__()
        self.beta, self.decay, self.reduction = beta, decay, reduction
        start = torch.randn(size, width) / width**0.5
        if decay is None:
            self.weight = nn.Parameter(start)
        else:
            self.register_buffer("weight", start)
            self.register_buffer("count", torch.ones(size))
            self.register_buffer("total", start.clone())
        self.register_buffer("used", torch.zeros(size, dtype=torch.int64))

    def forward(self, vectors: Tensor, codes: Tensor | None = None) -> Quantized:
        """Quantize ``(B, D)``; in training mode also counts use and, with `decay`, updates the codebook.

        Args:
            vectors: ``(B, D)``.
            codes: ``(B,)`` chosen by somebody else (a balanced assignment); None chooses the nearest.
        """
        if codes is None:
            with torch.no_grad():
                codes = nearest(vectors.detach(), self.weight)
        if self.training:
            self._count(vectors.detach(), codes)
        # not self.weight[codes]: its gradient is added up by threads in the order in which they arrive
        chosen = functional.embedding(codes, self.weight)
        loss = self.beta * self._reduce(vectors - chosen.detach())
        if self.decay is None:
            loss = loss + self._reduce(vectors.detach() - chosen)
        return Quantized(codes, chosen, loss)

    def _reduce(self, difference: Tensor) -> Tensor:
        squares = difference.square()
        return squares.sum(1).mean() if self.reduction == "sum" else squares.mean()

    @torch.no_grad()
    def _count(self, vectors: Tensor, codes: Tensor) -> None:
        member = nn.functional.one_hot(codes, len(self.weight))
        counts = member.sum(0)
        self.used += counts
        if self.decay is None:
            return
        sums = member.T.to(vectors.dtype) @ vectors
        self.count = self.decay * self.count + (1 - self.decay) * counts
        self.total = self.decay * self.total + (1 - self.decay) * sums
        alive = self.count > 1e-3  # a code long without use keeps its place instead of fading to zero
        self.weight = torch.where(
            alive[:, None], self.total / self.count.clamp(min=1e-3)[:, None], self.weight
        )

    @torch.no_grad()
    def initialise(self, vectors: Tensor, seed: int) -> None:
        """Place the codes on the k-means centroids of ``(N, D)``; N must be at least K."""
        self._place(torch.arange(len(self.weight)), kmeans(vectors, len(self.weight), seed=seed).centroids)

    @torch.no_grad()
    def revive(self, vectors: Tensor, seed: int) -> int:
        """Move every code that was not chosen since the last call onto a random one of `vectors` ``(N, D)``.

        Returns:
            The number of codes moved. The counts start anew.
        """
        dead = torch.nonzero(self.used == 0).squeeze(1)
        self.used.zero_()
        if len(dead):
            generator = torch.Generator().manual_seed(seed)
            rows = torch.randint(len(vectors), (len(dead),), generator=generator)
            self._place(dead, vectors[rows.to(vectors.device)])
        return len(dead)

    def _place(self, codes: Tensor, vectors: Tensor) -> None:
        self.weight.data[codes] = vectors.to(self.weight)
        if self.decay is not None:
            self.total[codes] = vectors.to(self.total)
            self.count[codes] = 1.0
