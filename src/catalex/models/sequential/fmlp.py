"""FMLP-Rec: learned filters over frequencies in place of attention (Zhou et al. 2022, arXiv 2202.13556).

A filter multiplies the Fourier transform over the positions of a window, which is a circular convolution:
every position knows all of the window, also later items. Training therefore predicts from the end of prefixes
only.

The transform of so few positions is written as two products with constant matrices: it gives the numbers of
the fast transform, runs in one kernel and can be captured in a CUDA graph.

Shape letters: B batch, S positions of the window, F = S // 2 + 1 frequencies, H model width, N items.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from catalex.models.sequential.base import SequenceModel
from catalex.models.sequential.parts import EPSILON, INITIAL_SD, Feed, initialise, turned


class FilterBlock(nn.Module):
    """A filter and a feed-forward part, each with dropout, residual and normalisation (section 4.2.2).

    Args:
        length: S.
        hidden: H.
        dropout: Share of activations dropped.
    """

    cosines: Tensor
    sines: Tensor
    counts: Tensor

    def __init__(self, length: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.filter = nn.Parameter(INITIAL_SD * torch.randn(2, length // 2 + 1, hidden))
        self.filter_norm = nn.LayerNorm(hidden, EPSILON)
        self.feed = Feed(hidden, dropout)
        self.feed_norm = nn.LayerNorm(hidden, EPSILON)
        frequencies = torch.arange(length // 2 + 1, dtype=torch.float64)
        angles = 2 * math.pi / length * torch.outer(frequencies, torch.arange(length, dtype=torch.float64))
        # a frequency and its mirror image count together; the first, and the last of an even S, are their own
        counts = torch.full((length // 2 + 1, 1), 2.0)
        counts[0] = 1.0
        if length % 2 == 0:
            counts[-1] = 1.0
        for name, value in (("cosines", angles.cos()), ("sines", angles.sin()), ("counts", counts)):
            self.register_buffer(name, value.float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, S, H)`` to ``(B, S, H)``; every position knows every other."""
        mixed = F.dropout(self.filtered(x), self.dropout, self.training)
        x = self.filter_norm(x + mixed)
        return self.feed_norm(x + self.feed(x))  # type: ignore[no-any-return]

    def filtered(self, x: Tensor) -> Tensor:
        """The inverse transform of W * transform(x), equations 4 to 6; in float32 whatever comes in."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            real, imaginary = self.cosines @ x, -self.sines @ x  # (B, F, H)
            a, b = self.filter.float()
            real, imaginary = real * a - imaginary * b, real * b + imaginary * a
            scale = self.counts / x.shape[1]
            found: Tensor = self.cosines.T @ (scale * real) - self.sines.T @ (scale * imaginary)
        return found


class FMLPModel(SequenceModel):
    """Item and position embeddings over a left-padded window, filter blocks, the item table again.

    Args:
        items: N.
        length: S, positions of the window; shorter histories are padded to it, on the left.
        hidden: H.
        layers: Number of blocks.
        dropout: Share of activations dropped.
    """

    def __init__(self, items: int, length: int, hidden: int, layers: int, dropout: float) -> None:
        super().__init__(items, length)
        self.dropout = dropout
        self.table = nn.Embedding(items + 1, hidden, padding_idx=items)
        self.positions = nn.Embedding(length, hidden)
        self.input_norm = nn.LayerNorm(hidden, EPSILON)
        self.blocks = nn.ModuleList([FilterBlock(length, hidden, dropout) for _ in range(layers)])
        initialise(self)

    def forward(self, histories: Tensor) -> Tensor:
        """``(B, S, H)``, **turned**: the latest item of every history is at the last position."""
        ids = turned(histories, self.items, self.length)
        x = self.table(ids) + self.positions.weight
        x = F.dropout(self.input_norm(x), self.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        return x  # type: ignore[no-any-return]

    def last(self, histories: Tensor, lengths: Tensor) -> Tensor:
        """As in the base class."""
        states: Tensor = self(histories)[:, -1]
        return states
