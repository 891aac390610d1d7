"""Attention over rows of fixed length that hold several examples each, in plain torch.

The layout of CUDA: every shape depends on the number of rows alone. These versions compute the whole square
of a row and mask it; `packed_kernels` does the same inside one kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

SHORT = 64
"""Places of a row of decoder positions."""

Drop = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Rows:
    """R rows of C tokens; a token attends to those of its segment in its row.

    Attributes:
        segments: ``(M,)`` int32 number of the example of each token; -1 is padding.
        starts, lengths: ``(B,)`` int32 first token and number of tokens of each example; a length of 0 is an
            example that is not there.
        capacity: C, side of the square of scores.
        step: Tokens from one row to the next, C at most.
    """

    segments: Tensor
    starts: Tensor
    lengths: Tensor
    capacity: int
    step: int

    @classmethod
    def of(cls, batch: Mapping[str, Tensor]) -> Rows:
        """From ``segments (R, C)``, ``starts`` and ``lengths``."""
        capacity = batch["segments"].shape[1]
        return cls(batch["segments"].flatten(), batch["starts"], batch["lengths"], capacity, capacity)

    @property
    def longest(self) -> int:
        return self.capacity

    def count(self, tokens: int) -> int:
        """R for M tokens."""
        return -(-tokens // self.step)

    def decoder(self, examples: int, positions: int, device: torch.device) -> Rows:
        """The layout of the decoder's own positions: as many whole examples to a row as fit."""
        capacity = max(SHORT, 1 << (positions - 1).bit_length())
        segments = torch.arange(examples * positions, dtype=torch.int32, device=device) // positions
        return Rows(segments, self.starts, self.lengths, capacity, capacity // positions * positions)


def rows_attention(qkv: Tensor, bias: Tensor, layout: Rows, heads: int, drop: Drop) -> Tensor:
    """Attended values ``(M, h d)`` of ``(M, 3 h d)`` with relative bias ``(h, C, C)``."""
    tokens, step = len(qkv), layout.step
    missing = layout.count(tokens) * step - tokens
    split = F.pad(qkv, (0, 0, 0, missing)).view(-1, step, 3, heads, qkv.shape[1] // (3 * heads))
    q, k, v = split.permute(2, 0, 3, 1, 4).unbind(0)
    segments = F.pad(layout.segments, (0, missing), value=-2).view(-1, 1, step)
    apart = (segments != segments.transpose(1, 2)).unsqueeze(1)
    scores = _wide(q @ k.transpose(2, 3)) + bias[:, :step, :step]
    weights = torch.softmax(scores.masked_fill(apart, -1e30), dim=-1).to(v.dtype)
    return (drop(weights) @ v).transpose(1, 2).flatten(2).flatten(0, 1)[:tokens]


def rows_cross_attention(queries: Tensor, memory: Tensor, layout: Rows, drop: Drop) -> Tensor:
    """Weighted means ``(B P, h, H)`` of each example's memory, ``(M, H)``, for ``(B P, h, H)`` queries."""
    places = torch.arange(layout.capacity, device=memory.device)
    there = places < layout.lengths[:, None]
    own = memory[torch.where(there, layout.starts[:, None] + places, 0)]
    own = torch.where(there[:, :, None], own, 0)
    asked = queries.view(len(layout.starts), -1, memory.shape[1])
    scores = _wide(asked @ own.transpose(1, 2)).masked_fill(~there[:, None, :], -1e30)
    return (drop(torch.softmax(scores, dim=-1).to(memory.dtype)) @ own).view_as(queries)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
