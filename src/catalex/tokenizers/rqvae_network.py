"""The network of the RQ-VAE: encoder MLP, residual codebooks, decoder MLP (TIGER, arXiv 2305.05065)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from catalex.quantize import Codebook, residual_encode, straight_through
from catalex.quantize.vq import Quantized, Reduction
from catalex.tokenizers.autoencoder import Autoencoder


class Losses(NamedTuple):
    """Losses of one batch, scalars: their sum, reconstruction, and quantization over all levels."""

    total: Tensor
    reconstruction: Tensor
    quantization: Tensor


class RQVAENetwork(Autoencoder):
    """``z = encoder(x)``, ``q = sum_l e_{l,c_l}``, ``x^ = decoder(z + sg(q - z))``.

    The residual of the next level subtracts the raw code vector; subtracting the straight-through value would
    have the same value but cut the gradient of the encoder.
    """

    def __init__(
        self,
        width: int,
        hidden: Sequence[int],
        latent: int,
        levels: int,
        codebook_size: int,
        *,
        beta: float,
        decay: float | None,
        reduction: Reduction,
    ) -> None:
        super().__init__(width, hidden, latent)
        self.reduction = reduction
        self.codebooks = nn.ModuleList(
            Codebook(codebook_size, latent, beta=beta, decay=decay, reduction=reduction)
            for _ in range(levels)
        )

    def forward(self, vectors: Tensor) -> Losses:
        """Losses of a batch ``(B, D)``, in float32."""
        return self.pass_through(vectors)[0]

    def pass_through(self, vectors: Tensor) -> tuple[Losses, Tensor, list[Quantized]]:
        """Losses of a batch ``(B, D)``, its quantized latents ``(B, latent)`` (straight-through), and what
        each of the L codebooks made of it."""
        latent = self.encoder(vectors)
        rest, total, quantization = latent, torch.zeros_like(latent), vectors.new_zeros(())
        chosen = []
        for level in range(len(self.codebooks)):
            quantized: Quantized = self.codebook(level)(rest, self.assign(level, rest))
            rest = rest - quantized.vectors
            total = total + quantized.vectors
            quantization = quantization + quantized.loss
            chosen.append(quantized)
        through = straight_through(latent, total)
        squares = (vectors - self.decoder(through)).square()
        reconstruction = squares.sum(1).mean() if self.reduction == "sum" else squares.mean()
        return Losses(reconstruction + quantization, reconstruction, quantization), through, chosen

    def assign(self, level: int, rest: Tensor) -> Tensor | None:
        """Codes ``(B,)`` of the residuals ``(B, latent)`` of a level where they are not the nearest ones."""
        return None

    @property
    def weights(self) -> list[Tensor]:
        """The L codebooks ``(K, latent)``, without gradient."""
        return [self.codebook(level).weight.detach() for level in range(len(self.codebooks))]

    def codebook(self, level: int) -> Codebook:
        """The codebook of a level."""
        found = self.codebooks[level]
        assert isinstance(found, Codebook)
        return found

    @torch.no_grad()
    def initialise(self, vectors: Tensor, seed: int) -> None:
        """Place the codebooks by k-means, level by level, on the latents of ``(N, D)``."""
        rest = self.encoder(vectors)
        for level in range(len(self.codebooks)):
            self.codebook(level).initialise(rest, seed + level)
            rest = rest - self._chosen(rest, level)

    @torch.no_grad()
    def revive(self, vectors: Tensor, seed: int) -> list[float]:
        """Move unused codes onto latents of ``(N, D)``; return the share of codes used at each level
        before."""
        rest, used = self.encoder(vectors), []
        for level in range(len(self.codebooks)):
            codebook = self.codebook(level)
            moved = codebook.revive(rest, seed + level)
            used.append(1 - moved / len(codebook.weight))
            rest = rest - self._chosen(rest, level)
        return used

    def utilisation(self) -> list[float]:
        """Share of codes used at each level since the last call; the counts start anew."""
        books = [self.codebook(level) for level in range(len(self.codebooks))]
        shares = [float((book.used > 0).float().mean()) for book in books]
        for book in books:
            book.used.zero_()
        return shares

    def _chosen(self, rest: Tensor, level: int) -> Tensor:
        weight = self.codebook(level).weight
        return weight[residual_encode(rest, [weight])[:, 0]]
