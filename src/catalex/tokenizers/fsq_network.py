"""The autoencoder of RecGPT's tokenizer (arXiv 2506.06270): slices to grid points and back.

::

    e  ->  K slices e^k of width w = D / K  ->  Linear(w -> d)  ->  grid  ->  Linear(d -> w)  + position k
       ->  2 bidirectional transformer layers  ->  last token  ->  MLP w -> h -> D

The two linear layers are shared by the K positions; there is no encoder network, so a slice's code depends on
that slice alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from catalex.models.gpt import Block, initialise
from catalex.quantize.fsq import Grid


class FSQNetwork(nn.Module):
    """Args:
    width: D of the vectors; zeros fill it up to a multiple of `tokens`.
    tokens: K.
    levels: Values of each of the d numbers of a code.
    layers, heads, dropout: Of the decoder.
    hidden: Width inside the MLP at the end.
    """

    def __init__(
        self,
        width: int,
        tokens: int,
        levels: Sequence[int],
        *,
        layers: int,
        heads: int,
        dropout: float,
        hidden: int,
    ) -> None:
        super().__init__()
        self.width, self.tokens = width, tokens
        self.slice = -(-width // tokens)
        self.grid = Grid(levels)
        self.narrow = nn.Linear(self.slice, self.grid.width)
        self.widen = nn.Linear(self.grid.width, self.slice)
        self.positions = nn.Parameter(torch.zeros(tokens, self.slice))
        self.blocks = nn.ModuleList(Block(self.slice, heads, dropout, "relu") for _ in range(layers))
        self.blocks.apply(initialise)
        self.out = nn.Sequential(nn.Linear(self.slice, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def numbers(self, vectors: Tensor) -> Tensor:
        """u ``(B, K, d)`` float32 of vectors ``(B, D)``, before the bound."""
        padded = F.pad(vectors, (0, self.tokens * self.slice - self.width))
        with torch.autocast(vectors.device.type, enabled=False):
            found: Tensor = self.narrow(padded.float().view(-1, self.tokens, self.slice))
        return found

    def restore(self, values: Tensor) -> Tensor:
        """Vectors ``(B, D)`` float32 of grid values ``(B, K, d)``."""
        x = self.widen(values) + self.positions
        for block in self.blocks:
            x = block(x)
        restored: Tensor = self.out(x[:, -1])
        return restored.float()

    def forward(self, vectors: Tensor) -> Tensor:
        """Mean absolute error ``mean |e - e^|`` of a batch ``(B, D)``, the only loss."""
        return (vectors - self.restore(self.grid(self.numbers(vectors)))).abs().mean()
