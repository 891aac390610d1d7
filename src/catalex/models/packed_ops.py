"""Operations of the packed T5 in plain torch, with gradients written out: fast on a CPU, right everywhere.

What costs on a CPU is not only arithmetic. Drawing one dropout decision in torch takes longer than the
product of the feed-forward block that it belongs to; and every intermediate that autograd keeps is fresh
memory. So decisions are 16-bit numbers of a fast generator (`kept`), and each operation keeps no more than
its gradient needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from catalex.models.packed_rows import Rows, rows_attention, rows_cross_attention
from catalex.models.t5 import IGNORE

STEPS = 2**16
"""Dropout rates are rounded to 1/STEPS; what is kept is scaled by the rounded rate."""


@dataclass(frozen=True)
class Groups:
    """Examples ordered by length: group g holds ``n_g`` examples of ``T_g`` tokens each, back to back."""

    sizes: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, batch: Mapping[str, Tensor]) -> Groups:
        """From ``widths (G, 2)``, which stays in host memory."""
        return cls(tuple((int(n), int(t)) for n, t in batch["widths"].tolist()))

    @property
    def longest(self) -> int:
        return max((t for _, t in self.sizes), default=1)

    def decoder(self, examples: int, positions: int, device: torch.device) -> Groups:
        """The layout of the decoder's own positions."""
        return Groups(((examples, positions),) if examples else ())


def kept(shape: tuple[int, ...], rate: float, device: torch.device) -> tuple[Tensor, float]:
    """A boolean mask that keeps entries with probability ``1 - rate``, and the factor that keeps the mean.

    Seeded from torch's generator, so that torch's seed decides.
    """
    threshold = round(rate * STEPS)
    scale = STEPS / (STEPS - threshold)
    if device.type != "cpu":
        return torch.rand(shape, device=device) >= threshold / STEPS, scale
    count = int(np.prod(shape))
    seed = int(torch.randint(2**63 - 1, ()))
    words = np.random.SFC64(seed).random_raw(-(-count // 4)).view(np.uint16)
    return torch.from_numpy(words[:count] >= threshold).view(shape), scale


def _masked_(x: Tensor, mask: Tensor) -> Tensor:
    """Multiply by a mask in place; NumPy does float32 by bool several times faster than torch."""
    if x.dtype == torch.float32 and x.device.type == "cpu" and x.is_contiguous():
        array = x.detach().numpy()
        np.multiply(array, mask.numpy(), out=array)
        return x
    return x.mul_(mask)


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float) -> Tensor:
        mask, ctx.scale = kept(tuple(x.shape), rate, x.device)
        ctx.save_for_backward(mask)
        return _masked_(x * ctx.scale, mask)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return _masked_(gradients[0] * ctx.scale, mask), None


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, wi: Tensor, wo: Tensor, rate: float) -> Tensor:
        hidden = (x @ wi.t()).relu_()
        ctx.scale = 1.0
        if rate:
            mask, ctx.scale = kept(tuple(hidden.shape), rate, x.device)
            _masked_(hidden, mask)
        ctx.save_for_backward(x, wi, wo, hidden)
        y = hidden @ wo.t()
        return y.mul_(ctx.scale) if rate else y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, wi, wo, hidden = ctx.saved_tensors
        g = gradients[0] * ctx.scale if ctx.scale != 1.0 else gradients[0]
        # what was cut off by the relu or by dropout is 0 in `hidden`, and nothing else is
        d_hidden = torch.ops.aten.threshold_backward(g @ wo, hidden, 0)
        return d_hidden @ wi, d_hidden.t() @ x, g.t() @ hidden, None


class _GroupedAttention(torch.autograd.Function):
    """Self-attention within each example, group by group."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor, layout: Groups, heads: int, rate: float) -> Tensor:
        width = qkv.shape[1] // (3 * heads)
        out = qkv.new_empty(len(qkv), heads * width)
        saved, begin, ctx.scale = [], 0, 1.0
        for count, length in layout.sizes:
            part = slice(begin, begin + count * length)
            begin = part.stop
            q, k, v = _heads(qkv[part], count, length, 3, heads)
            scores = _wide(q @ k.transpose(2, 3)).add_(bias[:, :length, :length])
            weights = torch.softmax(scores, dim=-1).to(qkv.dtype)
            saved.append(weights)
            if rate:
                mask, ctx.scale = kept(tuple(weights.shape), rate, qkv.device)
                saved.append(mask)
                weights = _masked_(weights * ctx.scale, mask)
            out[part].view(count, length, heads, width).copy_((weights @ v).transpose(1, 2))
        ctx.layout, ctx.heads, ctx.rate, ctx.longest = layout, heads, rate, bias.shape[1]
        ctx.save_for_backward(qkv, *saved)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        qkv, *saved = ctx.saved_tensors
        heads, each, begin = ctx.heads, 2 if ctx.rate else 1, 0
        d_qkv = torch.empty_like(qkv)
        d_bias = _wide(qkv.new_zeros((heads, ctx.longest, ctx.longest)))
        for number, (count, length) in enumerate(ctx.layout.sizes):
            part = slice(begin, begin + count * length)
            begin = part.stop
            q, k, v = _heads(qkv[part], count, length, 3, heads)
            (g,) = _heads(gradients[0][part], count, length, 1, heads)
            weights = saved[each * number]
            d_weights = g @ v.transpose(2, 3)
            dropped = weights
            if ctx.rate:
                mask = saved[each * number + 1]
                dropped = _masked_(weights * ctx.scale, mask)
                d_weights = _masked_(d_weights.mul_(ctx.scale), mask)
            d_scores = _softmax_backward(d_weights, weights)
            d_bias[:, :length, :length] += d_scores.sum(0)
            d_scores = d_scores.to(qkv.dtype)
            into = d_qkv[part].view(count, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
            into[0].copy_(d_scores @ k)
            into[1].copy_(d_scores.transpose(2, 3) @ q)
            into[2].copy_(dropped.transpose(2, 3) @ g)
        return d_qkv, d_bias, None, None, None


class _GroupedCross(torch.autograd.Function):
    """Every decoder position of an example looks at that example's tokens, all heads at once."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, memory: Tensor, layout: Groups, rate: float) -> Tensor:
        examples = sum(count for count, _ in layout.sizes)
        each = queries.shape[:2].numel() // max(examples, 1)
        rows = queries.view(examples, each, memory.shape[1])  # (B, P h, H)
        out = torch.empty_like(rows)
        saved, example, token, ctx.scale = [], 0, 0, 1.0
        for count, length in layout.sizes:
            own = memory[token : token + count * length].view(count, length, -1)
            asked = rows[example : example + count]
            weights = torch.softmax(_wide(asked @ own.transpose(1, 2)), dim=-1).to(memory.dtype)
            saved.append(weights)
            if rate:
                mask, ctx.scale = kept(tuple(weights.shape), rate, memory.device)
                saved.append(mask)
                weights = _masked_(weights * ctx.scale, mask)
            torch.bmm(weights, own, out=out[example : example + count])
            example, token = example + count, token + count * length
        ctx.layout, ctx.rate = layout, rate
        ctx.save_for_backward(rows, memory, *saved)
        return out.view_as(queries)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, memory, *saved = ctx.saved_tensors
        d_out = gradients[0].reshape(rows.shape)
        d_rows, d_memory = torch.empty_like(rows), torch.empty_like(memory)
        each, example, token = 2 if ctx.rate else 1, 0, 0
        for number, (count, length) in enumerate(ctx.layout.sizes):
            part = slice(token, token + count * length)
            own = memory[part].view(count, length, -1)
            asked, g = rows[example : example + count], d_out[example : example + count]
            weights = dropped = saved[each * number]
            d_weights = g @ own.transpose(1, 2)
            if ctx.rate:
                mask = saved[each * number + 1]
                dropped = _masked_(weights * ctx.scale, mask)
                d_weights = _masked_(d_weights.mul_(ctx.scale), mask)
            d_scores = _softmax_backward(d_weights, weights)
            d_scores = d_scores.to(memory.dtype)
            torch.bmm(d_scores, own, out=d_rows[example : example + count])
            into = d_memory[part].view(count, length, -1)
            torch.bmm(d_scores.transpose(1, 2), asked, out=into)
            into.baddbmm_(dropped.transpose(1, 2), g)
            example, token = example + count, part.stop
        return d_rows.view_as(gradients[0]), d_memory, None, None


def _wide(x: Tensor) -> Tensor:
    """At least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _softmax_backward(d_weights: Tensor, weights: Tensor) -> Tensor:
    """Gradient of the scores, in float32, from that of the weights."""
    wide = _wide(weights)
    return torch._softmax_backward_data(_wide(d_weights), wide, -1, wide.dtype)


def _heads(x: Tensor, count: int, length: int, parts: int, heads: int) -> tuple[Tensor, ...]:
    """Contiguous ``(n, h, T, d)`` tensors of ``(n T, parts h d)``."""
    split = x.reshape(count, length, parts, heads, -1).permute(2, 0, 3, 1, 4)
    return split.contiguous().unbind(0)


class TorchOps:
    """`catalex.models.t5_packed.Ops` in plain torch."""

    def __init__(self, rate: float, heads: int, dtype: torch.dtype) -> None:
        self.rate, self.heads, self.dtype = rate, heads, dtype

    def embed(self, table: Tensor, tokens: Tensor) -> Tensor:
        return self.drop(F.embedding(tokens, table))

    def gains(self, gains: list[Tensor]) -> list[Tensor]:
        return gains

    def biases(self, bias: Tensor, users: int) -> list[Tensor]:
        return [bias] * users

    def add_norm(
        self, x: Tensor, y: Tensor | None, gain: Tensor, *, last: bool = False
    ) -> tuple[Tensor, Tensor]:
        x = x if y is None else x + self.drop(y)
        n = F.rms_norm(x, (x.shape[1],), gain, 1e-6).to(self.dtype)
        return x, self.drop(n) if last else n

    def drop(self, x: Tensor) -> Tensor:
        dropped: Tensor = _Drop.apply(x, self.rate) if self.rate else x  # type: ignore[no-untyped-call]
        return dropped

    def feed_forward(self, x: Tensor, wi: Tensor, wo: Tensor) -> Tensor:
        y: Tensor = _FeedForward.apply(x, wi, wo, self.rate)  # type: ignore[no-untyped-call]
        return y

    def self_attention(self, qkv: Tensor, bias: Tensor, layout: Groups | Rows) -> Tensor:
        if isinstance(layout, Rows):
            return rows_attention(qkv, bias, layout, self.heads, self.drop)
        out: Tensor = _GroupedAttention.apply(  # type: ignore[no-untyped-call]
            qkv, bias, layout, self.heads, self.rate
        )
        return out

    def cross_attention(self, queries: Tensor, memory: Tensor, layout: Groups | Rows) -> Tensor:
        if isinstance(layout, Rows):
            return rows_cross_attention(queries, memory, layout, self.drop)
        out: Tensor = _GroupedCross.apply(queries, memory, layout, self.rate)  # type: ignore[no-untyped-call]
        return out

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(_wide(logits), labels, ignore_index=IGNORE, reduction="sum")
