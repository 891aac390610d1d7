"""FDSA: one causal transformer over items, one over their features, joined at the end (Zhang et al. 2019).

Features are the words of an item's attributes, mixed by attention (as published), or a content vector through
a small network (the variant in the comparison of UniSRec, arXiv 2206.05941). Candidates are scored by their
item embeddings alone.

Shape letters: B batch, S items of a history, H model width, N items, D width of content vectors, P
attributes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from catalex.models.sequential.attributes import AttributeLists
from catalex.models.sequential.base import SequenceModel
from catalex.models.sequential.parts import EPSILON, Block, initialise


class VectorFeatures(nn.Module):
    """A content vector through two layers: item ids ``(B, S)`` to ``(B, S, H)``."""

    vectors: Tensor

    def __init__(self, vectors: Tensor, hidden: int) -> None:
        super().__init__()
        self.register_buffer("vectors", F.pad(vectors, (0, 0, 0, 1)), persistent=False)
        self.widen = nn.Linear(vectors.shape[1], hidden)
        self.narrow = nn.Linear(hidden, hidden)

    def forward(self, items: Tensor) -> Tensor:
        """``(B, S)`` to ``(B, S, H)``."""
        moved: Tensor = self.narrow(F.gelu(self.widen(self.vectors[items])))
        return moved


class AttributeFeatures(nn.Module):
    """Attribute embeddings mixed by a learned attention (equations 1 and 2): ``(B, S)`` to ``(B, S, H)``."""

    def __init__(self, lists: AttributeLists, hidden: int) -> None:
        super().__init__()
        self.lists = lists
        self.table = nn.Embedding(lists.count + 1, hidden, padding_idx=lists.count)
        self.weigh = nn.Linear(hidden, hidden)
        self.score = nn.Linear(hidden, 1, bias=False)

    def forward(self, items: Tensor) -> Tensor:
        """An item without attributes gets the zero vector."""
        words, real = self.lists(items)  # (B, S, P)
        embedded = self.table(words)
        scores = self.score(torch.tanh(self.weigh(embedded))).squeeze(-1).float()
        shares = scores.masked_fill(~real, -1e9).softmax(-1)
        mixed: Tensor = (shares.unsqueeze(-1) * embedded).sum(-2)  # padding embeds to zero
        return mixed


class FDSAModel(SequenceModel):
    """Item stream and feature stream, each with the same positions and its own blocks.

    Args:
        items: N.
        features: Maps item ids to feature vectors: `VectorFeatures` or `AttributeFeatures`.
        length: S, longest history it can read.
        hidden: H, width; divisible by `heads`.
        layers: Blocks of each stream.
        heads: Attention heads of a block.
        dropout: Share of activations dropped.
    """

    def __init__(
        self,
        items: int,
        features: VectorFeatures | AttributeFeatures,
        length: int,
        hidden: int,
        layers: int,
        heads: int,
        dropout: float,
    ) -> None:
        super().__init__(items, length)
        self.dropout, self.features = dropout, features
        self.table = nn.Embedding(items + 1, hidden, padding_idx=items)
        self.positions = nn.Embedding(length, hidden)
        self.input_norms = nn.ModuleList([nn.LayerNorm(hidden, EPSILON) for _ in range(2)])
        self.streams = nn.ModuleList(
            [nn.ModuleList([Block(hidden, heads, dropout) for _ in range(layers)]) for _ in range(2)]
        )
        self.join = nn.Linear(2 * hidden, hidden)
        self.final_norm = nn.LayerNorm(hidden, EPSILON)
        initialise(self)

    def forward(self, histories: Tensor) -> Tensor:
        """As in the base class; position s depends on positions 0..s only."""
        places = self.positions.weight[: histories.shape[1]]
        ends = []
        for number, x in enumerate((self.table(histories), self.features(histories))):
            x = F.dropout(self.input_norms[number](x + places), self.dropout, self.training)
            for block in self.streams[number]:  # type: ignore[attr-defined]
                x = block(x)
            ends.append(x)
        joined = self.final_norm(self.join(torch.cat(ends, -1)))
        return F.dropout(joined, self.dropout, self.training)
