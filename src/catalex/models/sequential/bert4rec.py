"""BERT4Rec: a bidirectional transformer that fills in masked items (Sun et al. 2019, arXiv 1904.06690).

Items are 0..N-1, N is padding, N + 1 the mask. To recommend, a mask is put behind the history and filled in.

Shape letters: B batch, S items of a history, H model width, N items.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from catalex.models.sequential.base import SequenceModel
from catalex.models.sequential.parts import EPSILON, Block, initialise, position_vectors


class BERT4RecModel(SequenceModel):
    """Item and position embeddings, bidirectional `Block`, and BERT's output layer over the item table.

    Args:
        items: N.
        length: S, longest history; there is one more position, for the mask behind it.
        hidden: H, width; divisible by `heads`.
        layers: Number of blocks.
        heads: Attention heads of a block.
        dropout: Share of activations dropped, also inside the attention.
        tied: Whether the output layer is the item table (equation 7); False gives it weights of its own.
        latest_first: See `position_vectors`.
    """

    own = ("table", "bias", "out")

    def __init__(
        self,
        items: int,
        length: int,
        hidden: int,
        layers: int,
        heads: int,
        dropout: float,
        *,
        tied: bool = True,
        latest_first: bool = False,
    ) -> None:
        super().__init__(items, length)
        self.dropout, self.latest_first = dropout, latest_first
        self.table = nn.Embedding(items + 2, hidden, padding_idx=items)
        self.positions = nn.Embedding(length + 1, hidden)
        self.blocks = nn.ModuleList([Block(hidden, heads, dropout, causal=False) for _ in range(layers)])
        self.input_norm = nn.LayerNorm(hidden, EPSILON)
        self.transform = nn.Linear(hidden, hidden)
        self.output_norm = nn.LayerNorm(hidden, EPSILON)
        self.bias = nn.Parameter(torch.zeros(items))
        self.out = None if tied else nn.Embedding(items, hidden)
        initialise(self)

    @property
    def mask(self) -> int:
        """The item id that stands for an unknown item."""
        return self.items + 1

    def forward(self, histories: Tensor) -> Tensor:
        """States ``(B, S', H)`` of items and masks, S' <= S + 1; each knows the whole row but no padding."""
        places = position_vectors(self.positions, histories, self.items, latest_first=self.latest_first)
        x = F.dropout(self.input_norm(self.table(histories) + places), self.dropout, self.training)
        keep = histories != self.items
        for block in self.blocks:
            x = block(x, keep)
        return x

    def last(self, histories: Tensor, lengths: Tensor) -> Tensor:
        """State ``(B, H)`` of a mask put behind each history ``(B, S')``, S' <= S."""
        masked = F.pad(histories, (0, 1), value=self.items).scatter(1, lengths[:, None], self.mask)
        return super().last(masked, lengths + 1)

    def candidates(self) -> Tensor:
        """As in the base class."""
        return super().candidates() if self.out is None else self.out.weight

    def logits(self, states: Tensor, candidates: Tensor | None = None) -> Tensor:
        """``E^T LN(gelu(W h)) + b``: equation 7, with the normalisation of BERT's own output layer."""
        states = self.output_norm(F.gelu(self.transform(states)))
        return super().logits(states, candidates) + self.bias
