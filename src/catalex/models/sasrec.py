"""SASRec: a causal transformer over item ids that predicts the next item at every position (Kang & McAuley
2018).

Items are numbered 0..N-1 as everywhere in the package; id N is padding. Histories are padded on the right:
causal attention then never lets a real position see padding, so no attention mask is needed and padding
cannot change a result.

Shape letters: B batch, S items of a history, H model width, N items, P chosen positions.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INITIAL_SD = 0.02
"""Standard deviation of all initial matrices (BERT; RecBole's SASRec)."""

EPSILON = 1e-12
"""Added to the variance in layer normalisation (BERT; RecBole's SASRec)."""

Norm = Literal["post", "pre"]


class Block(nn.Module):
    """Causal multi-head attention and a feed-forward part, with dropout, residual, normalisation."""

    def __init__(self, hidden: int, heads: int, dropout: float, norm: Norm) -> None:
        super().__init__()
        self.heads, self.dropout, self.norm = heads, dropout, norm
        self.project = nn.Linear(hidden, 3 * hidden)
        self.output = nn.Linear(hidden, hidden)
        self.widen = nn.Linear(hidden, 4 * hidden)
        self.narrow = nn.Linear(4 * hidden, hidden)
        self.attention_norm = nn.LayerNorm(hidden, EPSILON)
        self.feed_norm = nn.LayerNorm(hidden, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, S, H)`` to ``(B, S, H)``; position s depends on positions 0..s only."""
        if self.norm == "post":
            x = self.attention_norm(x + self._attend(x))
            return self.feed_norm(x + self._feed(x))  # type: ignore[no-any-return]
        x = x + self._attend(self.attention_norm(x))
        return x + self._feed(self.feed_norm(x))

    def _attend(self, x: Tensor) -> Tensor:
        batch, length, hidden = x.shape
        parts = self.project(x).view(batch, length, 3, self.heads, hidden // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # each (B, heads, S, H / heads)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        return self._drop(self.output(mixed.transpose(1, 2).reshape(batch, length, hidden)))

    def _feed(self, x: Tensor) -> Tensor:
        return self._drop(self.narrow(F.gelu(self.widen(x))))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class SASRecModel(nn.Module):
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
    ) -> None:
        super().__init__()
        self.items, self.length, self.dropout = items, length, dropout
        self.table = nn.Embedding(items + 1, hidden, padding_idx=items)
        self.positions = nn.Embedding(length, hidden)
        self.blocks = nn.ModuleList([Block(hidden, heads, dropout, norm) for _ in range(layers)])
        self.input_norm = nn.LayerNorm(hidden, EPSILON) if norm == "post" else nn.Identity()
        self.final_norm = nn.LayerNorm(hidden, EPSILON) if norm == "pre" else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INITIAL_SD)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            self.table.weight[items] = 0.0

    def forward(self, histories: Tensor) -> Tensor:
        """State after each item.

        Args:
            histories: ``(B, S')`` item ids, S' <= S, padded on the right with N.

        Returns:
            ``(B, S', H)``. Rows at padding are meaningless.
        """
        x = self.table(histories) + self.positions.weight[: histories.shape[1]]
        x = F.dropout(self.input_norm(x), self.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        return self.final_norm(x)  # type: ignore[no-any-return]

    def logits(self, states: Tensor) -> Tensor:
        """Score of every item: states ``(..., H)`` to ``(..., N)``. Padding has no score."""
        return states @ self.table.weight[: self.items].T

    def loss(
        self,
        histories: Tensor,
        targets: Tensor,
        positions: Tensor | None = None,
        reduction: Literal["mean", "sum"] = "mean",
    ) -> Tensor:
        """Mean (or sum) of the cross-entropy of the full softmax over all items; the mean is about log N
        before training.

        Args:
            histories: ``(B, S)`` item ids, padded on the right with N.
            targets: ``(B, S)`` item that follows each position, or ``(P,)`` if `positions` are given;
                negative entries are left out.
            positions: ``(P,)`` flat positions ``row * S + column`` to predict from. Naming the real positions
                spares the product of padding with the item table, which is most of the work; the loss is the
                same.
        """
        states = self(histories).flatten(0, 1)
        if positions is not None:
            states = states.index_select(0, positions)
        logits = self.logits(states).float()
        return F.cross_entropy(logits, targets.flatten(), ignore_index=-1, reduction=reduction)

    def last(self, histories: Tensor, lengths: Tensor) -> Tensor:
        """State ``(B, H)`` after the last item of each history ``(B, S')`` of `lengths` ``(B,)`` >= 1."""
        states = self(histories)
        latest: Tensor = states[torch.arange(len(lengths), device=states.device), lengths - 1]
        return latest
