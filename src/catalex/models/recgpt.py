"""RecGPT's network: a decoder-only transformer that reads item tokens and predicts the next item's tokens.

arXiv 2506.06270. An item is L tokens; with position t of the sequence, token x_t and slice e_t of its content
vector::

    input_t = LN(W[x_t]) + LN(A e_t) + P[t]          A: the "auxiliary" stream of continuous content
    attention: causal over items, all L tokens of an item see each other
    head(state of token l of item i) -> token l of item i + 1

All L tokens of the next item are predicted at once, independently given the history. Right padding is never
seen by what comes before it.

Shape letters: B batch, S items, L levels, T = S L tokens, H width, V vocabulary, w width of a slice.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from catalex.models.gpt import Block, causal_mask, initialise
from catalex.models.losses import LossSum, summed_cross_entropy


class RecGPTModel(nn.Module):
    """Args:
    vocabulary: V, padding (token 0) included.
    levels: L, tokens an item.
    length: S, longest history.
    slice_width: w.
    hidden, layers, heads, dropout: Sizes of the transformer.
    bidirectional: Whether the tokens of an item see each other; False is strictly causal (ablation).
    auxiliary: Whether the continuous stream is added; False reads tokens alone (ablation).
    """

    def __init__(
        self,
        vocabulary: int,
        levels: int,
        length: int,
        slice_width: int,
        *,
        hidden: int,
        layers: int,
        heads: int,
        dropout: float,
        bidirectional: bool = True,
        auxiliary: bool = True,
    ) -> None:
        super().__init__()
        self.levels, self.length, self.dropout = levels, length, dropout
        self.bidirectional = bidirectional
        self.table = nn.Embedding(vocabulary, hidden)
        self.table_norm = nn.LayerNorm(hidden)
        self.auxiliary = nn.Linear(slice_width, hidden, bias=False) if auxiliary else None
        self.auxiliary_norm = nn.LayerNorm(hidden) if auxiliary else None
        self.positions = nn.Embedding(length * levels, hidden)
        self.blocks = nn.ModuleList(Block(hidden, heads, dropout) for _ in range(layers))
        self.final_norm = nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, vocabulary, bias=False)
        self.apply(initialise)

    def forward(self, tokens: Tensor, slices: Tensor) -> Tensor:
        """States ``(B, S, L, H)``: that of token l of item i predicts token l of item i + 1.

        Args:
            tokens: ``(B, S, L)`` token ids, S at most `length`, padded on the right.
            slices: ``(B, S, L, w)`` slices of the content vectors.
        """
        batch, items, levels = tokens.shape
        x = self.table_norm(self.table(tokens.flatten(1)))
        if self.auxiliary is not None and self.auxiliary_norm is not None:
            x = x + self.auxiliary_norm(self.auxiliary(slices.flatten(1, 2)))
        x = F.dropout(x + self.positions.weight[: items * levels], self.dropout, self.training)
        mask = causal_mask(items * levels, levels if self.bidirectional else 1, tokens.device)
        for block in self.blocks:
            x = block(x, mask)
        states: Tensor = self.final_norm(x)
        return states.view(batch, items, levels, -1)

    def last(self, tokens: Tensor, slices: Tensor, lengths: Tensor) -> Tensor:
        """Logits ``(B, L, V)`` float32 of the item after each history of `lengths` ``(B,)`` >= 1."""
        states = self(tokens, slices)
        latest = states[torch.arange(len(lengths), device=lengths.device), lengths - 1]
        found: Tensor = self.head(latest).float()
        return found

    def loss(
        self, tokens: Tensor, slices: Tensor, positions: Tensor, targets: Tensor, keep: Tensor
    ) -> LossSum:
        """Cross-entropy over all tokens of the items to predict.

        Args:
            tokens, slices: As in `forward`.
            positions: ``(P,)`` flat item positions ``row * S + column`` to predict from.
            targets: ``(P, L)`` tokens of the item that follows each.
            keep: ``(P,)`` bool, positions that count.
        """
        states = self(tokens, slices).flatten(0, 1).index_select(0, positions)  # (P, L, H)
        counted = keep[:, None].expand_as(targets).flatten()
        return summed_cross_entropy(states.flatten(0, 1), self.head.weight, targets.flatten(), counted)
