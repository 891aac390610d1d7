"""One bidirectional Transformer block of the Qwen2 kind: what reconstructs text and images from L codes.

A language model's decoder block run without a causal mask (UTGRec, arXiv 2504.04405, section 2.2.3: one
shallow layer, so that the codes have to carry the content). Positions 0..T-1 run over the whole input;
rotary embeddings alone tell its positions apart.

Shape letters: B items, T positions, d width, h query heads, g key and value heads, w width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INITIAL_SD = 0.02
"""Standard deviation of initial matrices and mask embeddings (Qwen2's ``initializer_range``; MAR)."""


@dataclass(frozen=True)
class BlockShape:
    """Sizes of a block.

    Attributes:
        width: d, width of the residual stream.
        heads: h, query heads.
        kv_heads: g, key and value heads; divides `heads`.
        hidden: Width inside the feed-forward part.
        rope_theta: Base of the rotary wavelengths (Qwen2-VL: 1e6).
        eps: Added to the mean square in RMSNorm (Qwen2-VL: 1e-6).
    """

    width: int
    heads: int
    kv_heads: int
    hidden: int
    rope_theta: float = 1e6
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if min(self.width, self.heads, self.kv_heads, self.hidden) < 1 or self.heads % self.kv_heads:
            raise ValueError(f"sizes must be positive and kv_heads must divide heads, found {self}")

    @property
    def head_width(self) -> int:
        """w: d / h, rounded up to an even number because rotary embeddings turn pairs."""
        return 2 * ceil(self.width / (2 * self.heads))

    @classmethod
    def for_width(cls, width: int) -> BlockShape:
        """Usual sizes for a width d.

        Heads of about 128 from d = 1024, 64 from 256 and 32 below, as language models of those sizes have;
        as few key and value heads as divide them, but more than one; 4 d inside the feed-forward part. Gives
        UTGRec's block for 1536 (12 heads, 2 key and value heads, 6144) and SmolLM2's 9 and 3 heads for 576.
        """
        usual = 128 if width >= 1024 else 64 if width >= 256 else 32
        heads = max(1, round(width / usual))
        kv_heads = next((g for g in range(2, heads + 1) if heads % g == 0), 1)
        return cls(width=width, heads=heads, kv_heads=kv_heads, hidden=4 * width)


class RMSNorm(nn.Module):
    """Root mean square normalisation with a gain, computed in float32 whatever comes in."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """``(..., d)`` to ``(..., d)`` of the same type."""
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


class BidirectionalBlock(nn.Module):
    """Pre-norm attention and SwiGLU with residuals; biases on queries, keys and values only (Qwen2).

    No norm at the end: that one belongs to the decoder that owns the block.
    """

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.shape = s = shape
        self.attention_norm = RMSNorm(s.width, s.eps)
        self.query = nn.Linear(s.width, s.heads * s.head_width)
        self.key = nn.Linear(s.width, s.kv_heads * s.head_width)
        self.value = nn.Linear(s.width, s.kv_heads * s.head_width)
        self.output = nn.Linear(s.heads * s.head_width, s.width, bias=False)
        self.feed_norm = RMSNorm(s.width, s.eps)
        self.gate = nn.Linear(s.width, s.hidden, bias=False)
        self.up = nn.Linear(s.width, s.hidden, bias=False)
        self.down = nn.Linear(s.hidden, s.width, bias=False)
        self.apply(_initialise)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Every position sees every kept position.

        Args:
            x: ``(B, T, d)``.
            keep: ``(B, T)`` bool, False at padding; at least one True a row. None keeps all.

        Returns:
            ``(B, T, d)``; rows at padding mean nothing.
        """
        x = x + self._attend(self.attention_norm(x), keep)
        y = self.feed_norm(x)
        out: Tensor = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return out

    def _attend(self, x: Tensor, keep: Tensor | None) -> Tensor:
        s = self.shape
        cos, sin = rotary(x.shape[1], s.head_width, s.rope_theta, x.device)
        query = rotate(self._heads(self.query(x), s.heads), cos, sin)  # (B, h, T, w)
        key = rotate(self._heads(self.key(x), s.kv_heads), cos, sin)  # (B, g, T, w)
        value = self._heads(self.value(x), s.kv_heads)
        # written out, because the fused kernels that take a mask know no grouped heads
        key, value = (part.repeat_interleave(s.heads // s.kv_heads, dim=1) for part in (key, value))
        mask = None if keep is None else keep[:, None, None, :].expand(-1, 1, x.shape[1], -1)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        out: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return out

    def _heads(self, x: Tensor, heads: int) -> Tensor:
        return x.view(*x.shape[:2], heads, self.shape.head_width).transpose(1, 2)


def rotary(length: int, width: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``(T, w)`` in float32 of position t times frequency ``theta ** (-2 i / w)``."""
    frequencies = theta ** (-torch.arange(0, width, 2, device=device, dtype=torch.float32) / width)
    angles = torch.outer(torch.arange(length, device=device, dtype=torch.float32), frequencies)
    angles = torch.cat([angles, angles], dim=-1)  # coordinate i turns together with i + w / 2
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``(B, h, T, w)``, each pair (i, i + w / 2) of coordinates turned by its angle (Su et al. 2021)."""
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=INITIAL_SD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
