"""RecGPT's network: a decoder-only transformer that reads item tokens and predicts the next item's tokens.

arXiv 2506.06270. An item is L tokens; with position t of the sequence, token x_t and slice e_t of its content
vector::

    input_t = LN(W[x_t]) + LN(A e_t) + P[t]          A: the "auxiliary" stream of continuous content
    attention: causal over items, all L tokens of an item see each other
    head(state of token l of item i) -> token l of item i + 1

All L tokens of the next item are predicted at once, independently given the history. Right padding is never
seen by what comes before it.

As published, W and the head have a row of their own for every token. A code that training never saw then has
a random row in W, and one that was never a target is only ever pushed down by the softmax. With a `grid`
[ours] both rows are made from the d numbers that a code of finite scalar quantization is (`GridTable`), so
that what is learned of one code holds for its neighbours.

Shape letters: B batch, S items, L levels, T = S L tokens, H width, V vocabulary, w width of a slice, K codes,
d numbers of a code.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from catalex.models.gpt import INITIAL_SD, Block, causal_mask, initialise
from catalex.models.losses import LossSum, summed_cross_entropy


class TokenTable(nn.Module):
    """A row for every token, as published.

    Args:
        vocabulary: V.
        hidden: H.
    """

    def __init__(self, vocabulary: int, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocabulary, hidden).normal_(std=INITIAL_SD))

    def forward(self) -> Tensor:
        """All rows ``(V, H)``."""
        return self.weight


class GridTable(nn.Module):
    """Rows of the K codes of a grid, made from their numbers: ``x + MLP(LN(x))``, x the sum of d vectors, one
    for each value of each number. All other tokens (padding, end, codes of another codebook) have rows of
    their own.

    Args:
        vocabulary: V; more than K.
        hidden: H.
        grid: n_j values of each of the d numbers.
        first: Token of code 0.
    """

    digits: Tensor

    def __init__(self, vocabulary: int, hidden: int, grid: Sequence[int], first: int) -> None:
        super().__init__()
        self.first, codes = first, prod(grid)
        self.others = nn.Parameter(torch.empty(vocabulary - codes, hidden).normal_(std=INITIAL_SD))
        self.values = nn.Embedding(sum(grid), hidden)
        self.norm = nn.LayerNorm(hidden)
        self.widen = nn.Linear(hidden, 2 * hidden)
        self.narrow = nn.Linear(2 * hidden, hidden)
        number, columns = torch.arange(codes), []
        # as `catalex.quantize.fsq` numbers them: the first number runs fastest
        for j, size in enumerate(grid):
            columns.append(sum(grid[:j]) + number % size)
            number = number // size
        self.register_buffer("digits", torch.stack(columns, dim=1), persistent=False)  # (K, d)

    def forward(self) -> Tensor:
        """All rows ``(V, H)``."""
        x = F.embedding_bag(self.digits, self.values.weight, mode="sum")
        codes = x + self.narrow(F.gelu(self.widen(self.norm(x))))
        before, after = self.others[: self.first], self.others[self.first :]
        return torch.cat([before, codes.to(before.dtype), after])


class RecGPTModel(nn.Module):
    """Args:
    vocabulary: V, padding (token 0) included.
    levels: L, tokens an item.
    length: S, longest history.
    slice_width: w.
    hidden, layers, heads, dropout: Sizes of the transformer.
    bidirectional: Whether the tokens of an item see each other; False is strictly causal (ablation).
    auxiliary: Whether the continuous stream is added; False reads tokens alone (ablation).
    grid: n_j of the tokenizer, for rows of W and head that are made from a code's numbers; None for rows of
        their own, as published.
    first: Token of code 0 of that grid.
    tied: Whether the head is the table W [ours]; False has rows of its own, as published.
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
        grid: Sequence[int] | None = None,
        first: int = 1,
        tied: bool = False,
    ) -> None:
        super().__init__()

        def table() -> TokenTable | GridTable:
            if grid is None:
                return TokenTable(vocabulary, hidden)
            return GridTable(vocabulary, hidden, grid, first)

        self.levels, self.length, self.dropout = levels, length, dropout
        self.bidirectional = bidirectional
        self.table = table()
        self.table_norm = nn.LayerNorm(hidden)
        self.auxiliary = nn.Linear(slice_width, hidden, bias=False) if auxiliary else None
        self.auxiliary_norm = nn.LayerNorm(hidden) if auxiliary else None
        self.positions = nn.Embedding(length * levels, hidden)
        self.blocks = nn.ModuleList(Block(hidden, heads, dropout) for _ in range(layers))
        self.final_norm = nn.LayerNorm(hidden)
        self.head = self.table if tied else table()
        self.apply(initialise)

    def forward(self, tokens: Tensor, slices: Tensor) -> Tensor:
        """States ``(B, S, L, H)``: that of token l of item i predicts token l of item i + 1.

        Args:
            tokens: ``(B, S, L)`` token ids, S at most `length`, padded on the right.
            slices: ``(B, S, L, w)`` slices of the content vectors.
        """
        batch, items, levels = tokens.shape
        x = self.table_norm(F.embedding(tokens.flatten(1), self.table()))
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
        found: Tensor = F.linear(latest, self.head()).float()
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
        return summed_cross_entropy(states.flatten(0, 1), self.head(), targets.flatten(), counted)
