"""One pre-norm transformer block of the GPT-2 kind, with whatever attention mask its owner gives it.

RecGPT's decoder-only recommender and its tokenizer's decoder are stacks of it, and so is the decoder that
writes an item's text back from its palette (`catalex.tokenizers.lamia`). H width, T positions.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INITIAL_SD = 0.02
"""Standard deviation of initial matrices and embeddings (GPT-2)."""


class Block(nn.Module):
    """``x + attend(norm(x))``, then ``x + feed(norm(x))``, with biases and dropout as in GPT-2.

    Args:
        hidden: H, divisible by `heads`.
        heads: Attention heads.
        dropout: Share of attention weights and of each part's output that is dropped.
        activation: "gelu_tanh" (GPT-2) or "relu".
    """

    def __init__(
        self,
        hidden: int,
        heads: int,
        dropout: float,
        activation: Literal["gelu_tanh", "relu"] = "gelu_tanh",
    ) -> None:
        super().__init__()
        if hidden % heads:
            raise ValueError(f"the width {hidden} is not divisible by {heads} heads")
        self.heads, self.dropout, self.activation = heads, dropout, activation
        self.attention_norm = nn.LayerNorm(hidden)
        self.project = nn.Linear(hidden, 3 * hidden)
        self.output = nn.Linear(hidden, hidden)
        self.feed_norm = nn.LayerNorm(hidden)
        self.widen = nn.Linear(hidden, 4 * hidden)
        self.narrow = nn.Linear(4 * hidden, hidden)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``(B, T, H)`` to ``(B, T, H)``.

        Args:
            x: The residual stream.
            mask: Bool, broadcast to ``(B, heads, T, T)``: whether position t (third axis) sees position s
                (last axis); None lets all see all. Every position must see one at least.
        """
        x = x + self._attend(self.attention_norm(x), mask)
        y = self.widen(self.feed_norm(x))
        y = F.gelu(y, approximate="tanh") if self.activation == "gelu_tanh" else F.relu(y)
        return x + self._drop(self.narrow(y))

    def _attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        batch, length, hidden = x.shape
        parts = self.project(x).view(batch, length, 3, self.heads, hidden // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # each (B, heads, T, H / heads)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return self._drop(self.output(mixed.transpose(1, 2).reshape(batch, length, hidden)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


def initialise(module: nn.Module) -> None:
    """GPT-2's start of a linear layer or a table; for `nn.Module.apply`."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INITIAL_SD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def causal_mask(length: int, block: int, device: torch.device) -> Tensor:
    """``(T, T)`` bool: position t sees all positions of its own block of `block` positions and of those
    before it. With ``block=1`` the usual causal mask."""
    number = torch.arange(length, device=device) // block
    return number[:, None] >= number[None, :]
