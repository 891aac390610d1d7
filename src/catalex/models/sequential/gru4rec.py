"""GRU4Rec: a recurrent network over item ids (Hidasi et al. 2016, arXiv 1511.06939).

In the form of today's comparisons (RecBole, UniSRec): embeddings of width H, a GRU of its own width, a linear
map back to H, the item table as output. Every position predicts the next item with the full softmax; the
session-parallel batches and the TOP1 and BPR losses of the paper are not used in this lineage.

Shape letters: B batch, S items of a history, H model width, N items.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from catalex.models.sequential.base import SequenceModel
from catalex.models.sequential.parts import initialise


class GRU4RecModel(SequenceModel):
    """Embeddings, gated recurrent units without biases, a linear map, the item table again.

    Args:
        items: N.
        length: S; nothing but the plan of the training depends on it.
        hidden: H, width of embeddings and states.
        inner: Width of the recurrent state.
        layers: Recurrent layers.
        dropout: Share of the embeddings' components dropped in training.
    """

    def __init__(self, items: int, length: int, hidden: int, inner: int, layers: int, dropout: float) -> None:
        super().__init__(items, length)
        self.dropout = dropout
        self.table = nn.Embedding(items + 1, hidden, padding_idx=items)
        self.gru = nn.GRU(hidden, inner, layers, bias=False, batch_first=True)
        self.output = nn.Linear(inner, hidden)
        initialise(self)
        for weight in self.gru.parameters():
            nn.init.xavier_uniform_(weight)  # as RecBole's; .02 would leave the gates without a signal

    def forward(self, histories: Tensor) -> Tensor:
        """As in the base class; position s depends on positions 0..s only."""
        x = F.dropout(self.table(histories), self.dropout, self.training)
        states, _ = self.gru(x)
        found: Tensor = self.output(states)
        return found
