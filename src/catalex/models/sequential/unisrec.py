"""UniSRec: text vectors through a mixture of whitening experts, then a transformer (Hou et al. 2022, arXiv
2206.05941).

Shape letters: B batch, S items of a history, H model width, N items, D width of content vectors, E experts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from catalex.models.sequential.content import ContrastiveModel
from catalex.models.sequential.parts import INITIAL_SD, initialise

LEAST_NOISE = 1e-2
"""Standard deviation that the gate's noise has at least (official code)."""
ROWS = 8192
"""Vectors adapted at a time where no gradient is kept: bounds memory at ROWS x E x H floats."""


class Adaptor(nn.Module):
    """E experts ``W_k (drop(x) - b_k)``, mixed by a gate (equations 1 and 2): ``(.., D)`` to ``(.., H)``.

    The gate starts at zero, so all experts count alike at first; while training its logits get Gaussian noise
    whose size depends on the vector. All experts share one draw of dropout (the official code draws for
    each).

    Args:
        width: D.
        hidden: H.
        experts: E.
        dropout: Share of the vector's entries dropped.
    """

    def __init__(self, width: int, hidden: int, experts: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.shift = nn.Parameter(torch.zeros(experts, width))
        self.weight = nn.Parameter(torch.empty(experts, width, hidden).normal_(std=INITIAL_SD))
        self.gate = nn.Parameter(torch.zeros(width, experts))
        self.noise = nn.Parameter(torch.zeros(width, experts))

    def forward(self, vectors: Tensor) -> Tensor:
        """``(.., D)`` to ``(.., H)``."""
        if torch.is_grad_enabled() or vectors.ndim != 2:
            return self._mix(vectors)
        return torch.cat([self._mix(part) for part in vectors.split(ROWS)])

    def _mix(self, vectors: Tensor) -> Tensor:
        logits = vectors @ self.gate
        if self.training:
            spread = F.softplus(vectors @ self.noise) + LEAST_NOISE
            logits = logits + torch.randn_like(logits) * spread
        shares = logits.float().softmax(-1)
        wide = self.weight.permute(1, 0, 2).flatten(1)  # (D, E H)
        moved = F.dropout(vectors, self.dropout, self.training) @ wide
        parts = moved.view(*moved.shape[:-1], len(self.shift), -1)  # (.., E, H)
        parts = parts - (self.shift[:, None] @ self.weight)[:, 0]
        return (shares.unsqueeze(-2).to(parts.dtype) @ parts).squeeze(-2)


class UniSRecModel(ContrastiveModel):
    """The adaptor, a causal transformer, cosines; with `ids` also an embedding of every item, added to its
    vector in histories and candidates (transductive). It starts at zero, where ids change nothing.

    Args:
        vectors: ``(N, D)`` text vectors, kept beside the weights and not among them.
        length, hidden, layers, heads, inner, dropout, temperature: As in `ContentModel`.
        experts: E.
        adaptor_dropout: Dropout of the text vectors.
        ids: Whether items have embeddings of their own.
    """

    contents: Tensor

    def __init__(
        self,
        vectors: Tensor,
        length: int,
        hidden: int,
        layers: int,
        heads: int,
        inner: int,
        dropout: float,
        temperature: float,
        *,
        experts: int,
        adaptor_dropout: float,
        ids: bool,
    ) -> None:
        items = len(vectors)
        super().__init__(items, length, hidden, layers, heads, inner, dropout, temperature)
        self.register_buffer("contents", F.pad(vectors, (0, 0, 0, 1)), persistent=False)
        self.adaptor = Adaptor(vectors.shape[1], hidden, experts, adaptor_dropout)
        initialise(self)
        self.ids = ids
        if ids:
            self.table = nn.Embedding(items + 1, hidden, padding_idx=items)
            nn.init.zeros_(self.table.weight)

    def vectors_of(self, items: Tensor) -> Tensor:
        """Adapted text vectors, plus the item's own embedding where there is one."""
        adapted: Tensor = self.adaptor(self.contents[items])
        return adapted + self.table(items) if self.ids else adapted
