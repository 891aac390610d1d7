"""What models over item contents share: a transformer over item vectors, cosine scores, in-batch contrast.

The item vectors come from contents, so the same weights read the histories of any catalogue; what belongs to
one catalogue is named in `own`.

Shape letters: B batch, S items of a history, H model width, N items, D width of content vectors.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from catalex.models.sequential.base import Reduction, SequenceModel
from catalex.models.sequential.parts import EPSILON, Block


class ContentModel(SequenceModel):
    """A causal transformer over item vectors; a score is a cosine divided by a temperature.

    Subclasses give `vectors_of`. Ids of items may be added to it (`table`): transductive use.

    Args:
        items: N, items of the catalogue.
        length: S, longest history it can read.
        hidden: H, width; divisible by `heads`.
        layers: Number of blocks.
        heads: Attention heads of a block.
        inner: Width inside the feed-forward parts.
        dropout: Share of activations dropped, also inside the attention.
        temperature: Scores are cosines over this (.07 in UniSRec, VQ-Rec and MISSRec).
    """

    def __init__(
        self,
        items: int,
        length: int,
        hidden: int,
        layers: int,
        heads: int,
        inner: int,
        dropout: float,
        temperature: float,
    ) -> None:
        super().__init__(items, length)
        self.dropout, self.temperature = dropout, temperature
        self.positions = nn.Embedding(length, hidden)
        self.input_norm = nn.LayerNorm(hidden, EPSILON)
        self.blocks = nn.ModuleList([Block(hidden, heads, dropout, inner=inner) for _ in range(layers)])

    @abstractmethod
    def vectors_of(self, items: Tensor) -> Tensor:
        """Item vectors ``(.., H)`` of item ids ``(..)``; what stands for padding does not matter."""

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Weights of the part that reads sequences, which fine-tuning may freeze."""
        parts = (self.positions, self.input_norm, self.blocks)
        return [parameter for part in parts for parameter in part.parameters()]

    def forward(self, histories: Tensor) -> Tensor:
        """As in the base class; position s depends on positions 0..s only."""
        return self.read(self.vectors_of(histories))

    def read(self, vectors: Tensor) -> Tensor:
        """State after each of the item vectors ``(B, S', H)``."""
        x = vectors + self.positions.weight[: vectors.shape[1]]
        x = F.dropout(self.input_norm(x), self.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        return x

    def candidates(self) -> Tensor:
        """What `logits` compares states with, for all N items."""
        return self.candidates_of(torch.arange(self.items, device=self.positions.weight.device))

    def candidates_of(self, items: Tensor) -> Tensor:
        """``(n, H)`` unit vectors of item ids ``(n,)``."""
        return unit(self.vectors_of(items))

    def logits(self, states: Tensor, candidates: Tensor | None = None) -> Tensor:
        """Cosines over the temperature."""
        table = self.candidates() if candidates is None else candidates
        return cosines(unit(states), table) / self.temperature


class ContrastiveModel(ContentModel):
    """A content model that is pre-trained on histories of several domains at once (UniSRec, equations 5 to
    7).

    Attributes:
        alike: Weight of the second task: a sequence and its copy with items dropped mean the same.
        drop: Share of items dropped from the copy.
    """

    own: ClassVar[tuple[str, ...]] = ("table",)
    alike: float = 1e-3
    drop: float = 0.2

    def contrast(self, batch: Mapping[str, Tensor], reduction: Reduction = "mean") -> Tensor:
        """The loss of pre-training: which of the items that come next in this batch comes next here?

        Args:
            batch: ``histories`` ``(B, S)``, ``lengths`` ``(B,)``, ``targets`` ``(B,)``.
            reduction: "sum" where several processes divide by their joint count.
        """
        targets = batch["targets"]
        states = self.last(batch["histories"], batch["lengths"])
        logits = self.logits(states, self.candidates_of(targets))
        loss = in_batch_contrast(logits, targets, self.synthetic(states, targets), reduction)
        if not self.alike:
            return loss
        copies = self.last(*dropped(batch["histories"], batch["lengths"], self.items, self.drop))
        pairs = cosines(unit(states), unit(copies)) / self.temperature
        return loss + self.alike * in_batch_contrast(pairs, targets, None, reduction)

    def synthetic(self, states: Tensor, targets: Tensor) -> Tensor | None:
        """Logits ``(B, n)`` of further negatives of each row; none here."""
        return None


def unit(vectors: Tensor) -> Tensor:
    """``(.., H)`` divided by their lengths, in float32."""
    return F.normalize(vectors.float(), dim=-1)


def cosines(rows: Tensor, columns: Tensor) -> Tensor:
    """``(.., n)`` products of unit vectors ``(.., H)`` and ``(n, H)`` in float32: divided by a small
    temperature, errors of shorter numbers would count."""
    with torch.autocast(rows.device.type, enabled=False):
        return rows @ columns.T


def in_batch_contrast(
    logits: Tensor, targets: Tensor, further: Tensor | None = None, reduction: Reduction = "mean"
) -> Tensor:
    """InfoNCE: row i of ``(B, B)`` should find column i.

    Columns of other rows with the same target are left out of the softmax. (The official code of UniSRec and
    VQ-Rec sets their logit to 0 before the exponential instead, so that each still adds 1 to the sum.)

    Args:
        logits: ``(B, B)``.
        targets: ``(B,)`` item ids.
        further: ``(B, n)`` logits of negatives that belong to one row each.
        reduction: Over the rows.
    """
    rows = torch.arange(len(targets), device=targets.device)
    same = (targets[:, None] == targets) & (rows[:, None] != rows)
    with torch.autocast(logits.device.type, enabled=False):
        table = logits.float().masked_fill(same, -torch.inf)
        table = table if further is None else torch.cat([table, further.float()], 1)
        return F.cross_entropy(table, rows, reduction=reduction)


def dropped(histories: Tensor, lengths: Tensor, padding: int, ratio: float) -> tuple[Tensor, Tensor]:
    """Histories ``(B, S)`` in which each item is left out with probability `ratio`, and their lengths.

    What stays moves together; of a history that lost everything the latest item stays. Randomness is torch's.
    """
    columns = torch.arange(histories.shape[1], device=histories.device)
    real = columns < lengths[:, None]
    keep = (torch.rand(histories.shape, device=histories.device) >= ratio) & real
    latest = columns == lengths[:, None] - 1
    keep = keep | (latest & ~keep.any(1, keepdim=True))
    order = (columns + histories.shape[1] * ~keep).argsort(1)
    return histories.where(keep, padding).gather(1, order), keep.sum(1)
