"""Parts that the sequence models share: the attention block of BERT, padding masks, initial values.

Shape letters: B batch, S items of a history, H model width.
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

UNSEEN = -10_000.0
"""Added to the attention scores of positions that must not be seen (BERT)."""

Norm = Literal["post", "pre"]
"""Where a block normalises: after each residual sum (BERT, RecBole), or before each part of the block."""


class Feed(nn.Module):
    """The feed-forward part of a block: ``W_2 gelu(W_1 x)`` with dropout."""

    def __init__(self, hidden: int, dropout: float, inner: int | None = None) -> None:
        super().__init__()
        self.dropout = dropout
        self.widen = nn.Linear(hidden, inner or 4 * hidden)
        self.narrow = nn.Linear(inner or 4 * hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., H)`` to ``(..., H)``."""
        return F.dropout(self.narrow(F.gelu(self.widen(x))), self.dropout, self.training)


class Block(nn.Module):
    """Multi-head attention and a feed-forward part, with dropout, residual, normalisation.

    Args:
        hidden: H; divisible by `heads`.
        heads: Attention heads.
        dropout: Share of activations dropped.
        norm: "post" or "pre".
        inner: Width inside the feed-forward part; None for 4 H.
        causal: Position s sees positions 0..s only.
        attention_dropout: Share of attention weights dropped; None for as many as of activations.
    """

    def __init__(
        self,
        hidden: int,
        heads: int,
        dropout: float,
        norm: Norm = "post",
        inner: int | None = None,
        *,
        causal: bool = True,
        attention_dropout: float | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.dropout, self.norm, self.causal = heads, dropout, norm, causal
        self.attention_dropout = dropout if attention_dropout is None else attention_dropout
        self.project = nn.Linear(hidden, 3 * hidden)
        self.output = nn.Linear(hidden, hidden)
        self.widen = nn.Linear(hidden, inner or 4 * hidden)
        self.narrow = nn.Linear(inner or 4 * hidden, hidden)
        self.attention_norm = nn.LayerNorm(hidden, EPSILON)
        self.feed_norm = nn.LayerNorm(hidden, EPSILON)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """``(B, S, H)`` to ``(B, S, H)``.

        Args:
            x: States.
            keep: ``(B, S)`` bool, False at positions that nobody may see. A causal
                block over right-padded rows needs none. None keeps all.
        """
        if self.norm == "post":
            x = self.attention_norm(x + self._attend(x, keep))
            return self.feed_norm(x + self._feed(x))  # type: ignore[no-any-return]
        x = x + self._attend(self.attention_norm(x), keep)
        return x + self._feed(self.feed_norm(x))

    def _attend(self, x: Tensor, keep: Tensor | None) -> Tensor:
        batch, length, hidden = x.shape
        parts = self.project(x).view(batch, length, 3, self.heads, hidden // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # each (B, heads, S, H / heads)
        dropout = self.attention_dropout if self.training else 0.0
        if keep is None:
            mixed = F.scaled_dot_product_attention(
                query, key, value, dropout_p=dropout, is_causal=self.causal
            )
        else:
            seen = keep[:, None, None, :].expand(-1, 1, length, -1)
            seen = seen & seen.new_ones(length, length).tril() if self.causal else seen
            # finite, as in BERT: a padding position that sees nothing must not become NaN
            mask = torch.where(seen, 0.0, UNSEEN).to(query.dtype)
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return self._drop(self.output(mixed.transpose(1, 2).reshape(batch, length, hidden)))

    def _feed(self, x: Tensor) -> Tensor:
        return self._drop(self.narrow(F.gelu(self.widen(x))))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


def initialise(model: nn.Module, sd: float = INITIAL_SD) -> None:
    """Normal matrices and embeddings of standard deviation `sd`, no biases, padding rows of zeros."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=sd)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            nn.init.zeros_(module.weight[module.padding_idx].detach())


def counted_back(histories: Tensor, padding: int) -> Tensor:
    """Positions ``(B, S')`` of right-padded item ids, counted from the latest, which is 0; 0 at padding too.

    Args:
        histories: ``(B, S')`` ids.
        padding: Id of what fills the end of a row.
    """
    lengths = (histories != padding).sum(dim=1, keepdim=True)
    return (lengths - 1 - torch.arange(histories.shape[1], device=histories.device)).clamp(min=0)


def position_vectors(table: nn.Embedding, histories: Tensor, padding: int, *, latest_first: bool) -> Tensor:
    """Vectors of the positions of right-padded item ids ``(B, S')``, to be added to those of the items.

    Args:
        table: One row a position.
        histories: ``(B, S')`` ids.
        padding: Id of what fills the end of a row.
        latest_first: Whether row 0 of `table` is that of the latest item, as where histories are padded on
            the left: what stands at the end is then always read alike. A state of a causal model so knows
            how many items come after it, though not which. False: row 0 is that of the oldest.

    Returns:
        ``(S', H)``, with `latest_first` ``(B, S', H)``.
    """
    if latest_first:
        found: Tensor = table(counted_back(histories, padding))
        return found
    return table.weight[: histories.shape[1]]


def turned(histories: Tensor, padding: int, length: int) -> Tensor:
    """Right-padded item ids ``(B, S')`` as ``(B, S)`` padded on the left, as some systems have it.

    Args:
        histories: S' <= S ids, `padding` behind the end of each.
        padding: N.
        length: S.
    """
    ids = F.pad(histories, (0, length - histories.shape[1]), value=padding)
    lengths = (ids != padding).sum(dim=1, keepdim=True)
    return ids.gather(1, (torch.arange(length, device=ids.device) + lengths) % length)
