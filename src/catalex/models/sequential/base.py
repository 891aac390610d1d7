"""What every sequence model is: histories in, a state after each item out, a score for every item.

Items are numbered 0..N-1 as everywhere in the package; id N is padding. Histories are padded on the right.

Shape letters: B batch, S items of a history, H model width, N items, P chosen positions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Reduction = Literal["mean", "sum"]


class SequenceModel(nn.Module, ABC):
    """Reads histories and scores items. Systems differ in `forward`, some also in the methods below it.

    As it stands here the item embeddings `table` are both input and output (tied, no bias). A model over item
    contents computes `candidates` instead.

    Attributes:
        items: N, items of the catalogue, and the padding id.
        length: S, the longest history it reads.
        table: Embeddings ``(N + 1, H)``, zero at padding; more rows where a model has special items.
        own: First words of the names in the state dict that mean something in one catalogue only: embeddings
            of item ids, vectors of items. They stay behind when the weights move to another domain.
    """

    own: ClassVar[tuple[str, ...]] = ("table",)
    table: nn.Embedding

    def __init__(self, items: int, length: int) -> None:
        super().__init__()
        self.items, self.length = items, length

    @abstractmethod
    def forward(self, histories: Tensor) -> Tensor:
        """State after each item.

        Args:
            histories: ``(B, S')`` item ids, S' <= S, padded on the right with N.

        Returns:
            ``(B, S', H)``. Rows at padding are meaningless. Whether a row knows of later items of the history
            is the system's choice; the plan of its training has to fit it.
        """

    def last(self, histories: Tensor, lengths: Tensor) -> Tensor:
        """State ``(B, H)`` after each history ``(B, S')`` of `lengths` ``(B,)`` >= 1: predicts the next."""
        states = self(histories)
        latest: Tensor = states[torch.arange(len(lengths), device=states.device), lengths - 1]
        return latest

    def candidates(self) -> Tensor:
        """``(N, H)`` what states are compared with. Computed once for many histories.

        A model whose `logits` wants more may return any tensor here: nobody else looks into it.
        """
        return self.table.weight[: self.items]

    def logits(self, states: Tensor, candidates: Tensor | None = None) -> Tensor:
        """Score of every item: states ``(..., H)`` to ``(..., N)``. Padding has no score.

        Args:
            states: From `forward` or `last`.
            candidates: From `candidates`, where they are at hand.
        """
        return states @ (self.candidates() if candidates is None else candidates).T

    def loss(self, batch: Mapping[str, Tensor], reduction: Reduction = "mean") -> Tensor:
        """Mean (or sum) of the cross-entropy of the full softmax over all items; the mean is about log N
        before training. With ``negatives`` in the batch: of the binary cross-entropy that tells the next item
        from one sampled item (Kang & McAuley 2018, equation 6).

        Args:
            batch: ``histories`` ``(B, S)`` and, where every position predicts, ``targets`` ``(B, S)`` the
                item that follows each; negative entries are left out. Instead of them all, ``positions``
                ``(P,)`` can name flat positions ``row * S + column`` to predict from, with ``targets``
                ``(P,)``: that spares the product of padding with the item table, which is most of the work.
                Where only the end predicts: ``lengths`` ``(B,)`` and ``targets`` ``(B,)``. ``negatives``
                have the shape of ``targets``.
            reduction: "sum" where several processes divide by their joint count.
        """
        states, targets = self.predicting(batch), batch["targets"].flatten()
        if "negatives" not in batch:
            logits = self.logits(states).float()
            return F.cross_entropy(logits, targets, ignore_index=-1, reduction=reduction)
        table, real = self.candidates(), targets >= 0
        liked = (states * table[targets.clamp(min=0)]).sum(-1).float()
        other = (states * table[batch["negatives"].flatten()]).sum(-1).float()
        total = (torch.where(real, F.softplus(-liked) + F.softplus(other), 0.0)).sum()
        return total if reduction == "sum" else total / real.sum().clamp(min=1)

    def predicting(self, batch: Mapping[str, Tensor]) -> Tensor:
        """States ``(P, H)`` that predict the flattened ``targets`` of a batch; see `loss`."""
        if "lengths" in batch:
            return self.last(batch["histories"], batch["lengths"])
        states: Tensor = self(batch["histories"]).flatten(0, 1)
        return states.index_select(0, batch["positions"]) if "positions" in batch else states
