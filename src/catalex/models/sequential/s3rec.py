"""S3-Rec: four self-supervised tasks first, then SASRec with the same weights (Zhou et al. 2020, arXiv
2008.07873).

Pre-training reads windows both ways, fine-tuning causally. Both pad on the right here; the public code
pre-trains with padding on the left, which shifts its position embeddings between the two.

Shape letters: B batch, S items of a history, H model width, N items, A attributes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from catalex.models.sequential.attributes import AttributeLists
from catalex.models.sequential.base import SequenceModel
from catalex.models.sequential.parts import EPSILON, Block, initialise


class Weights(NamedTuple):
    """How much the tasks of pre-training count (RecBole's defaults are those of the official code)."""

    associated: float = 0.2
    """AAP: an item's state tells its attributes."""
    masked_item: float = 1.0
    """MIP: the context of a masked item tells which it was."""
    masked_attributes: float = 1.0
    """MAP: the context of a masked item tells its attributes."""
    segment: float = 0.5
    """SP: the context of a masked segment tells which it was."""


class S3RecModel(SequenceModel):
    """SASRec with a mask token, attribute embeddings and the heads of the four tasks.

    Args:
        items: N; id N is padding, N + 1 the mask.
        attributes: Of the N items and of padding and mask, which have none.
        length: S.
        hidden: H, width; divisible by `heads`.
        layers: Number of blocks.
        heads: Attention heads of a block.
        dropout: Share of activations dropped.
    """

    def __init__(
        self,
        items: int,
        attributes: AttributeLists,
        length: int,
        hidden: int,
        layers: int,
        heads: int,
        dropout: float,
    ) -> None:
        super().__init__(items, length)
        self.dropout, self.attributes = dropout, attributes
        self.table = nn.Embedding(items + 2, hidden, padding_idx=items)
        self.positions = nn.Embedding(length, hidden)
        self.blocks = nn.ModuleList([Block(hidden, heads, dropout) for _ in range(layers)])
        self.input_norm = nn.LayerNorm(hidden, EPSILON)
        self.attribute_table = nn.Embedding(attributes.count, hidden)
        self.heads = nn.ModuleDict({name: nn.Linear(hidden, hidden) for name in Weights._fields})
        initialise(self)

    def forward(self, histories: Tensor) -> Tensor:
        """As in the base class; position s depends on positions 0..s only."""
        return self._read(histories, both_ways=False)

    def _read(self, histories: Tensor, *, both_ways: bool) -> Tensor:
        x = self.table(histories) + self.positions.weight[: histories.shape[1]]
        x = F.dropout(self.input_norm(x), self.dropout, self.training)
        keep = (histories != self.items) if both_ways else None
        for block in self.blocks:
            assert isinstance(block, Block)
            block.causal = not both_ways
            x = block(x, keep)
        states: Tensor = x
        return states

    # --- pre-training ---------------------------------------------------------------------------------------

    def pretraining_loss(self, batch: Mapping[str, Tensor], weights: Weights, ratio: float) -> Tensor:
        """The weighted sum of the four losses, each summed over positions as in the official code and divided
        by the rows of the batch.

        Args:
            batch: ``windows`` ``(B, S)`` item ids, padded on the right with N, at least two a row.
            weights: Of the tasks.
            ratio: Share of masked items, at least one a row.
        """
        windows = batch["windows"]
        real = windows != self.items
        lengths = real.sum(1)
        draws = torch.rand(windows.shape, device=windows.device).masked_fill(~real, 2.0)
        masked = (draws < ratio) | (draws == draws.amin(1, keepdim=True))
        mask = windows.new_full((), self.items + 1)
        states = self._read(torch.where(masked, mask, windows), both_ways=True)
        parts = (
            self.associated_loss(states, windows, real & ~masked),
            self.masked_item_loss(states, windows, masked),
            self.masked_attribute_loss(states, windows, masked),
            self.segment_loss(windows, lengths),
        )
        total = torch.stack([weight * part for weight, part in zip(weights, parts, strict=True)]).sum()
        return total / len(windows)

    def associated_loss(self, states: Tensor, windows: Tensor, counted: Tensor) -> Tensor:
        """AAP (equation 4): binary cross-entropy over all attributes at the `counted` ``(B, S)`` items."""
        return self._attribute_loss(self.heads["associated"](states), windows, counted)

    def masked_attribute_loss(self, states: Tensor, windows: Tensor, counted: Tensor) -> Tensor:
        """MAP (equation 6): the same at masked positions, for the attributes of the item that stood there."""
        return self._attribute_loss(self.heads["masked_attributes"](states), windows, counted)

    def _attribute_loss(self, queries: Tensor, windows: Tensor, counted: Tensor) -> Tensor:
        """Sum of ``softplus(x_a)`` over all attributes minus ``x_a`` over the item's own: the cross-entropy
        without a table of ones and zeros."""
        logits = (queries @ self.attribute_table.weight.T).float()
        words, real = self.attributes(windows)
        own = logits.gather(2, words.clamp(max=self.attributes.count - 1))
        each = F.softplus(logits).sum(2) - torch.where(real, own, 0.0).sum(2)
        return torch.where(counted, each, 0.0).sum()

    def masked_item_loss(self, states: Tensor, windows: Tensor, counted: Tensor) -> Tensor:
        """MIP (equation 5): the item that stood there against a random other one."""
        queries = self.heads["masked_item"](states)
        other = torch.randint_like(windows, max(self.items - 1, 1))
        other = (other + (other >= windows).long()).clamp(max=self.items - 1)  # never the item itself
        losses = told_apart((queries * self.table(windows)).sum(-1), (queries * self.table(other)).sum(-1))
        return torch.where(counted, losses, 0.0).sum()

    def segment_loss(self, windows: Tensor, lengths: Tensor) -> Tensor:
        """SP (equation 7): the state of the masked context against the segment and one of another row.

        A segment of at most half the row is cut out at random; the other segment stands in the same place and
        holds as many items of the next row of the batch.
        """
        columns = torch.arange(windows.shape[1], device=windows.device)
        draws = torch.rand(2, len(windows), device=windows.device)
        size = 1 + (draws[0] * (lengths // 2)).long().clamp(max=lengths // 2 - 1)
        begin = (draws[1] * (lengths - size + 1)).long()
        inside = (columns >= begin[:, None]) & (columns < (begin + size)[:, None])
        real = columns < lengths[:, None]
        mask, padding = windows.new_full((), self.items + 1), windows.new_full((), self.items)
        following, their = windows.roll(-1, 0), lengths.roll(-1, 0)
        strange = following.gather(1, columns % their[:, None])
        outside = torch.where(real, mask, padding)
        views = (
            torch.where(inside, mask, windows),
            torch.where(inside, windows, outside),
            torch.where(inside, strange, outside),
        )
        states = self._read(torch.cat(views), both_ways=True)
        ends = states[torch.arange(len(states), device=states.device), (lengths - 1).repeat(3)]
        context, segment, other = ends.chunk(3)
        query = self.heads["segment"](context)
        return told_apart((query * segment).sum(-1), (query * other).sum(-1)).sum()


def told_apart(liked: Tensor, other: Tensor) -> Tensor:
    """``-log sigmoid(sigmoid(liked) - sigmoid(other))``, in float32: what the official code trains, a
    binary cross-entropy of a difference of probabilities. It never falls below log(1 + 1/e)."""
    return F.softplus(other.float().sigmoid() - liked.float().sigmoid())
