"""BSARec: self-attention and a rescaling of low and high frequencies (Shin et al. 2024, arXiv 2312.10325).

Self-attention smooths: it keeps low frequencies of a history and loses the high ones, where sudden interests
are. A second path splits a window into the two and gives the high part a weight of its own; a fixed share
`alpha` of that path is mixed with the attention.

The low part of a window is a constant linear map of its positions, so it is one product with a matrix.

Shape letters: B batch, S positions of the window, H model width, N items.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from catalex.models.sequential.base import SequenceModel
from catalex.models.sequential.parts import EPSILON, Block, initialise, turned


def low_pass(length: int, frequencies: int) -> Tensor:
    """``(S, S)`` the matrix that keeps the lowest `frequencies` of the Fourier transform over S positions."""
    spectrum = torch.fft.rfft(torch.eye(length, dtype=torch.float64), dim=0)
    spectrum[frequencies:] = 0
    low: Tensor = torch.fft.irfft(spectrum, n=length, dim=0).float()
    return low


class FrequencyBlock(Block):
    """A transformer block whose first half is ``alpha * rescaled + (1 - alpha) * attended`` (equations 8-11).

    Args:
        length: S.
        hidden: H; divisible by `heads`.
        heads: Attention heads.
        dropout: Share of activations dropped.
        alpha: Share of the frequency path.
        cutoff: c; the lowest ``c // 2 + 1`` frequencies, with the mean, are the low part (official code).
        attention_dropout: Share of attention weights dropped; None for `dropout`.
    """

    low: Tensor

    def __init__(
        self,
        length: int,
        hidden: int,
        heads: int,
        dropout: float,
        alpha: float,
        cutoff: int,
        attention_dropout: float | None = None,
    ) -> None:
        super().__init__(hidden, heads, dropout, attention_dropout=attention_dropout)
        self.alpha = alpha
        self.root_weight = nn.Parameter(torch.randn(hidden))  # squared, so that nothing is turned round
        self.frequency_norm = nn.LayerNorm(hidden, EPSILON)
        self.register_buffer("low", low_pass(length, cutoff // 2 + 1), persistent=False)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """``(B, S, H)`` to ``(B, S, H)``; the frequencies make every position know every other."""
        rescaled = self.frequency_norm(x + self._drop(self.rescaled(x)))
        attended = self.attention_norm(x + self._attend(x, keep))
        x = self.alpha * rescaled + (1 - self.alpha) * attended
        return self.feed_norm(x + self._feed(x))  # type: ignore[no-any-return]

    def rescaled(self, x: Tensor) -> Tensor:
        """Low part + beta^2 * high part; in float32 whatever comes in."""
        with torch.autocast(x.device.type, enabled=False):
            low = self.low @ x.float()
            return low + self.root_weight.float().square() * (x.float() - low)


class BSARecModel(SequenceModel):
    """Item and position embeddings over a left-padded window, `FrequencyBlock`, the item table again.

    Args:
        items: N.
        length: S, positions of the window; shorter histories are padded to it, on the left.
        hidden: H, width; divisible by `heads`.
        layers: Number of blocks.
        heads: Attention heads.
        dropout: Share of activations dropped.
        alpha: Share of the frequency path.
        cutoff: c, see `FrequencyBlock`.
        attention_dropout: Share of attention weights dropped; None for `dropout`.
    """

    def __init__(
        self,
        items: int,
        length: int,
        hidden: int,
        layers: int,
        heads: int,
        dropout: float,
        alpha: float,
        cutoff: int,
        attention_dropout: float | None = None,
    ) -> None:
        super().__init__(items, length)
        self.dropout = dropout
        self.table = nn.Embedding(items + 1, hidden, padding_idx=items)
        self.positions = nn.Embedding(length, hidden)
        self.input_norm = nn.LayerNorm(hidden, EPSILON)
        self.blocks = nn.ModuleList(
            [
                FrequencyBlock(length, hidden, heads, dropout, alpha, cutoff, attention_dropout)
                for _ in range(layers)
            ]
        )
        initialise(self)

    def forward(self, histories: Tensor) -> Tensor:
        """``(B, S, H)``, **turned**: the latest item of every history is at the last position."""
        ids = turned(histories, self.items, self.length)
        x = self.table(ids) + self.positions.weight
        x = F.dropout(self.input_norm(x), self.dropout, self.training)
        keep = ids != self.items
        for block in self.blocks:
            x = block(x, keep)
        return x  # type: ignore[no-any-return]

    def last(self, histories: Tensor, lengths: Tensor) -> Tensor:
        """As in the base class."""
        states: Tensor = self(histories)[:, -1]
        return states
