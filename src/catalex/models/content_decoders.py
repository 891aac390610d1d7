"""Decoders that rebuild an item's content from its codes: words, image latents, or a content vector.

They exist for training only: what they need to rebuild an item has to be in its L codes (UTGRec, arXiv
2504.04405, section 2.2.3). Each reads ``h (B, L, d_dec)``, the running sums of the quantized vectors, and
returns a `LossSum`.

Shape letters: B items, L codes an item, d_dec decoder width, T text tokens, V words, N_v image tokens, C
their channels, D width of a content vector.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from catalex.models.bidirectional import INITIAL_SD, BidirectionalBlock, BlockShape, RMSNorm
from catalex.models.diffusion import DiffusionLoss
from catalex.models.losses import LossSum, summed_cross_entropy

__all__ = ["LossSum", "TextDecoder", "VectorDecoder", "VectorLoss", "VisualDecoder", "VisualLoss"]

VisualLoss = Literal["diffusion", "mse"]
VectorLoss = Literal["cosine", "squared"]


class MaskedReader(nn.Module):
    """``[h ; M ... M]`` through one bidirectional block: L codes and one learned mask embedding, repeated.

    The targets are never an input, so nothing of them can leak (UTGRec: mask ratio 100 %).
    """

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.mask = nn.Parameter(torch.empty(shape.width).normal_(std=INITIAL_SD))
        self.block = BidirectionalBlock(shape)
        self.norm = RMSNorm(shape.width, shape.eps)

    def forward(self, h: Tensor, length: int, keep: Tensor | None = None) -> Tensor:
        """States ``(B, T, d_dec)`` of T mask positions behind ``h (B, L, d_dec)``; ``keep (B, T)`` or all."""
        batch, levels, width = h.shape
        # in the type of the weights: under autocast h may be bfloat16, but residuals add up in float32
        x = torch.cat([h.to(self.mask.dtype), self.mask.expand(batch, length, width)], dim=1)
        if keep is not None:
            keep = torch.cat([keep.new_ones(batch, levels), keep], dim=1)
        states: Tensor = self.norm(self.block(x, keep)[:, levels:])
        return states


class TextDecoder(nn.Module):
    """Every word of an item's text at once, from its codes alone (UTGRec, eq. 8)."""

    def __init__(self, shape: BlockShape, vocabulary: Tensor, *, tokens_max: int, seed: int) -> None:
        """
        Args:
            shape: Sizes of the block; d_dec is its width.
            vocabulary: ``(V, d)`` word embeddings of the encoder; the head starts as a copy and is trained. A
                linear map goes before the head when d is not d_dec.
            tokens_max: Longest text that `forward` accepts.
            seed: Fixes the initial weights.
        """
        super().__init__()
        self.tokens_max = tokens_max
        self.table = nn.Parameter(vocabulary.detach().float().clone())
        width = vocabulary.shape[1]
        with _seeded(seed):
            self.reader = MaskedReader(shape)
            self.adapt = nn.Linear(shape.width, width, bias=False) if width != shape.width else nn.Identity()

    def forward(self, h: Tensor, tokens: Tensor, keep: Tensor, places: Tensor | None = None) -> LossSum:
        """Cross-entropy of the real tokens.

        Args:
            h: ``(B, L, d_dec)``.
            tokens: ``(B, T)`` int64, T <= tokens_max; read only where `keep` holds.
            keep: ``(B, T)`` bool, False at padding; all False for an item that does not count.
            places: ``(R,)`` where `keep` holds, counted along B x T, from a caller who knows it without
            asking
                the device: the head is then computed for these alone.

        Returns:
            Sum over the real tokens, and their number.

        Raises:
            ValueError: When T exceeds tokens_max.
        """
        if tokens.shape[1] > self.tokens_max:
            raise ValueError(f"texts of at most {self.tokens_max} tokens expected, found {tokens.shape[1]}")
        states = self.adapt(self.reader(h, tokens.shape[1], keep)).flatten(0, 1)
        targets, counted = tokens.flatten(), keep.flatten()
        if places is not None:
            states, targets = states.index_select(0, places), targets[places]
            counted = torch.ones_like(targets, dtype=torch.bool)
        return summed_cross_entropy(states, self.table, targets, counted)

    def logits(self, h: Tensor, length: int) -> Tensor:
        """``(B, T, V)`` scores of all words at T = `length` positions, to look at."""
        return F.linear(self.adapt(self.reader(h, length)), self.table)


class VisualDecoder(nn.Module):
    """The latent tokens of an item's image from its codes (UTGRec, eq. 9)."""

    def __init__(
        self,
        shape: BlockShape,
        *,
        tokens: int,
        channels: int,
        seed: int,
        loss: VisualLoss = "diffusion",
        width: int = 1024,
        blocks: int = 3,
        repeats: int = 4,
        recompute: bool | None = None,
    ) -> None:
        """
        Args:
            shape: Sizes of the block; d_dec is its width.
            tokens: N_v (UTGRec: 256).
            channels: C (UTGRec: 16).
            seed: Fixes the initial weights.
            loss: `diffusion` (the paper's), or `mse`, a linear map and a squared error: cheaper, and blurred.
            width: Width of the denoiser; see `DiffusionLoss`, as for the rest.
            blocks: Its blocks.
            repeats: Noise draws of each token a step.
            recompute: Save memory for time; None: in large steps.
        """
        super().__init__()
        self.tokens, self.channels = tokens, channels
        self.diffusion: DiffusionLoss | None = None
        self.regress: nn.Linear | None = None
        with _seeded(seed):
            self.reader = MaskedReader(shape)
            if loss == "diffusion":
                self.diffusion = DiffusionLoss(
                    channels, shape.width, width=width, blocks=blocks, repeats=repeats, recompute=recompute
                )
            else:
                self.regress = nn.Linear(shape.width, channels)

    def forward(
        self, h: Tensor, latents: Tensor, present: Tensor, generator: torch.Generator | None = None
    ) -> LossSum:
        """
        Args:
            h: ``(B, L, d_dec)``.
            latents: ``(B, N_v, C)`` targets, scaled to a variance of about one.
            present: ``(B,)`` 1 for items with an image, 0 without; their latents may be anything.
            generator: Source of the diffusion's noise; the device's default one when None.

        Returns:
            Sum over the items with an image of the mean over their tokens (and channels), and the number of
            these items. Without any: 0, with zero gradients.
        """
        z = self.reader(h, self.tokens)  # (B, N_v, d_dec)
        present = present.float()
        if self.diffusion is not None:
            weight = (present / self.tokens).repeat_interleave(self.tokens)
            total, _ = self.diffusion(latents.flatten(0, 1), z.flatten(0, 1), weight, generator)
        else:
            clean = torch.where(present[:, None, None] > 0, latents, 0.0).float()
            total = ((self._regress(z) - clean).square().mean((1, 2)) * present).sum()
        return LossSum(total, present.sum())

    @torch.no_grad()
    def sample(
        self,
        h: Tensor,
        *,
        steps: int = 100,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Latents ``(B, N_v, C)``: drawn by the diffusion model, or the regression's one answer."""
        z = self.reader(h, self.tokens)
        if self.diffusion is None:
            return self._regress(z)
        x = self.diffusion.sample(z.flatten(0, 1), steps=steps, temperature=temperature, generator=generator)
        return x.view(len(h), self.tokens, self.channels)

    def _regress(self, z: Tensor) -> Tensor:
        assert self.regress is not None
        out: Tensor = self.regress(z).float()
        return out


class VectorDecoder(nn.Module):
    """An item's content vector from its codes, for catalogues that have neither words nor images.

    Ours; the paper has no such case. A linear map of the last level's h, which holds the sum of all levels.
    """

    def __init__(self, width: int, dimensions: int, *, seed: int, loss: VectorLoss = "cosine") -> None:
        """
        Args:
            width: Width of what it reads.
            dimensions: D.
            seed: Fixes the initial weights.
            loss: `cosine`, 1 - cos: content vectors are compared by direction, and domains whose vectors
                differ in length weigh the same. `squared`: squared distance over the target's dimensions,
                where lengths mean something.
        """
        super().__init__()
        self.loss = loss
        with _seeded(seed):
            self.map = nn.Linear(width, dimensions)

    def forward(self, h: Tensor, vectors: Tensor, present: Tensor) -> LossSum:
        """
        Args:
            h: ``(B, L, d_dec)``.
            vectors: ``(B, D)`` targets.
            present: ``(B,)`` 1 for items that have a vector, 0 without; theirs may be anything.

        Returns:
            Sum over the items that have a vector, and their number.
        """
        present = present.float()
        clean = torch.where(present[:, None] > 0, vectors, 0.0).float()
        guess = self.vectors(h)
        if self.loss == "cosine":
            losses = 1 - F.cosine_similarity(guess, clean, dim=1)
        else:
            losses = (guess - clean).square().sum(1)
        return LossSum((losses * present).sum(), present.sum())

    def vectors(self, h: Tensor) -> Tensor:
        """The rebuilt content vectors ``(B, D)`` in float32."""
        out: Tensor = self.map(h[:, -1]).float()
        return out


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw initial weights from `seed` and leave torch's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
