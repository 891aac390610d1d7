"""SASRec: a causal transformer over item ids that predicts the next item at every position (Kang & McAuley
2018, arXiv 1808.09781).

Histories are padded on the right: causal attention then never lets a real position see padding, so no
attention mask is needed and padding cannot change a result.

Shape letters: B batch, S items of a history, H model width, N items.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from catalex.models.sequential.base import SequenceModel
from catalex.models.sequential.parts import EPSILON, Block, Norm, initialise, position_vectors


class SASRecModel(SequenceModel):
    """Item and position embeddings, a stack of `Block`, and the item table again as the output layer (tied).

    Args:
        items: N, items of the catalogue.
        length: S, longest history it can read.
        hidden: H, width; divisible by `heads`.
        layers: Number of blocks.
        heads: Attention heads of a block.
        dropout: Share of activations dropped, also inside the attention.
        norm: "post" normalises after each residual sum (BERT, SASRec in RecBole); "pre" before each part,
            with one normalisation at the end.
        latest_first: See `position_vectors`.
    """

    def __init__(
        self,
        items: int,
        length: int,
        hidden: int,
        layers: int,
        heads: int,
        dropout: float,
        norm: Norm = "post",
        *,
        latest_first: bool = False,
    ) -> None:
        super().__init__(items, length)
        self.dropout, self.latest_first = dropout, latest_first
        self.table = nn.Embedding(items + 1, hidden, padding_idx=items)
        self.positions = nn.Embedding(length, hidden)
        self.blocks = nn.ModuleList([Block(hidden, heads, dropout, norm) for _ in range(layers)])
        self.input_norm = nn.LayerNorm(hidden, EPSILON) if norm == "post" else nn.Identity()
        self.final_norm = nn.LayerNorm(hidden, EPSILON) if norm == "pre" else nn.Identity()
        initialise(self)

    def forward(self, histories: Tensor) -> Tensor:
        """As in the base class; position s depends on positions 0..s only, and with `latest_first` on how
        many come after it."""
        places = position_vectors(self.positions, histories, self.items, latest_first=self.latest_first)
        x = F.dropout(self.input_norm(self.table(histories) + places), self.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        return self.final_norm(x)  # type: ignore[no-any-return]
