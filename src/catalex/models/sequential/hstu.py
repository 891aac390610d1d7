"""HSTU: gated attention without softmax (Zhai et al. 2024, arXiv 2402.17152, sections 3 and 4.1.1).

Attention weights are SiLU(q k + b) / n, each for itself: how much a user did of something is not normalised
away. What is attended to is normalised and multiplied by a gate. There is no feed-forward part. The bias b
depends on how far apart two positions are; the paper's bias by elapsed time is left out, because histories
here carry their order only.

Shape letters: B batch, S items of a history, H model width, h heads, v and q widths of a head, N items,
P positions that predict.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from catalex.models.sequential.base import Reduction, SequenceModel
from catalex.models.sequential.parts import INITIAL_SD, position_vectors

NORM_EPSILON = 1e-6
"""Added to variances and lengths (the official configurations)."""


class HSTUBlock(nn.Module):
    """One layer: pointwise projection, spatial aggregation, pointwise transformation (equations 1 to 3).

    Args:
        length: S, also the n that attention weights are divided by.
        hidden: H.
        heads: h.
        value: v, width of a head's values and gates.
        query: q, width of a head's queries and keys.
        dropout: Share of the gated values dropped.
    """

    distances: Tensor
    seen: Tensor

    def __init__(self, length: int, hidden: int, heads: int, value: int, query: int, dropout: float) -> None:
        super().__init__()
        self.length, self.heads, self.value, self.query, self.dropout = length, heads, value, query, dropout
        self.hidden = hidden
        self.project = nn.Linear(hidden, 2 * heads * (value + query), bias=False)
        self.output = nn.Linear(heads * value, hidden)
        self.bias = nn.Parameter(INITIAL_SD * torch.randn(length))
        nn.init.normal_(self.project.weight, std=INITIAL_SD)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        places = torch.arange(length)
        self.register_buffer("distances", (places[:, None] - places).clamp(min=0), persistent=False)
        self.register_buffer("seen", torch.ones(length, length).tril(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, S', H)`` to ``(B, S', H)``; position s depends on positions 0..s only."""
        rows, length, _ = x.shape
        widths = [self.heads * self.value] * 2 + [self.heads * self.query] * 2
        normed = F.layer_norm(x, (self.hidden,), eps=NORM_EPSILON)
        gate, value, query, key = F.silu(self.project(normed)).split(widths, dim=-1)
        query, key = (part.view(rows, length, self.heads, self.query) for part in (query, key))
        bias = self.bias[self.distances[:length, :length]]  # (S', S'), the same for every head
        scores = torch.einsum("bshq,bthq->bhst", query, key) + bias
        weights = F.silu(scores) / self.length * self.seen[:length, :length]
        value = value.view(rows, length, self.heads, self.value)
        mixed = torch.einsum("bhst,bthv->bshv", weights.to(value.dtype), value).flatten(2)
        gated = gate * F.layer_norm(mixed, (mixed.shape[-1],), eps=NORM_EPSILON)
        out: Tensor = x + self.output(F.dropout(gated, self.dropout, self.training))
        return out


class HSTUModel(SequenceModel):
    """Scaled item embeddings and positions, `HSTUBlock`, cosines with the item table over a temperature.

    Args:
        items: N.
        length: S, longest history.
        hidden: H.
        layers: Number of blocks.
        heads: h, heads of a block.
        width: v = q, width of a head.
        dropout: Share of the gated values dropped.
        input_dropout: Share of the embeddings' components dropped.
        temperature: Cosines are divided by it before the softmax.
        negatives: Items sampled uniformly for each position in training; None for the full softmax.
        latest_first: See `position_vectors`.
    """

    def __init__(
        self,
        items: int,
        length: int,
        hidden: int,
        layers: int,
        heads: int,
        width: int,
        dropout: float,
        input_dropout: float,
        temperature: float,
        negatives: int | None = None,
        *,
        latest_first: bool = False,
    ) -> None:
        super().__init__(items, length)
        self.latest_first = latest_first
        self.input_dropout, self.temperature, self.negatives = input_dropout, temperature, negatives
        self.scale = math.sqrt(hidden)
        self.table = nn.Embedding(items + 1, hidden, padding_idx=items)
        self.positions = nn.Embedding(length, hidden)
        self.blocks = nn.ModuleList(
            [HSTUBlock(length, hidden, heads, width, width, dropout) for _ in range(layers)]
        )
        nn.init.trunc_normal_(self.table.weight, std=INITIAL_SD)
        nn.init.trunc_normal_(self.positions.weight, std=math.sqrt(1 / hidden))
        nn.init.zeros_(self.table.weight[items].detach())

    def forward(self, histories: Tensor) -> Tensor:
        """States ``(B, S', H)`` of length 1; position s depends on positions 0..s only, and with
        `latest_first` on how many come after it."""
        places = position_vectors(self.positions, histories, self.items, latest_first=self.latest_first)
        x = self.table(histories) * self.scale + places
        x = F.dropout(x, self.input_dropout, self.training)
        for block in self.blocks:
            x = block(x)
        return F.normalize(x.float(), dim=-1, eps=NORM_EPSILON)

    def candidates(self) -> Tensor:
        """``(N, H)`` of length 1."""
        return F.normalize(super().candidates().float(), dim=-1, eps=NORM_EPSILON)

    def logits(self, states: Tensor, candidates: Tensor | None = None) -> Tensor:
        """Cosine over temperature."""
        return super().logits(states, candidates) / self.temperature

    def loss(self, batch: Mapping[str, Tensor], reduction: Reduction = "mean") -> Tensor:
        """As in the base class, or over the next item and `negatives` sampled ones (section 4.1.1)."""
        if self.negatives is None:
            return super().loss(batch, reduction)
        states, targets = self.predicting(batch), batch["targets"].flatten()
        shape = (len(targets), self.negatives)
        drawn = torch.randint(0, self.items, shape, device=targets.device)
        chosen = torch.cat([targets.clamp(min=0)[:, None], drawn], dim=1)  # (P, 1 + negatives)
        table = self.candidates()
        logits = torch.einsum("ph,pkh->pk", states, table[chosen]).float() / self.temperature
        # drawn again by chance, the next item must not count against itself
        same = drawn == targets[:, None]
        logits = torch.cat([logits[:, :1], logits[:, 1:].masked_fill(same, -math.inf)], dim=1)
        first = torch.where(targets >= 0, 0, -1)
        return F.cross_entropy(logits, first, ignore_index=-1, reduction=reduction)
