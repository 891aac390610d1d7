"""The training pass of the T5 over packed tokens: no padding is computed, in few large operations.

The network, its weights and its loss are those of `catalex.models.t5.T5`; only the way to them differs:

- Tokens of all histories lie one behind the other, ``(M,)``. Whatever works token by token (norms, products,
  feed-forward blocks) never sees padding; only attention needs to know where a history begins (`Layout`).
- Cross-attention never makes keys and values of the history. A score is ``(Wq x) . (Wk e) = x . (Wq' Wk) e``,
  so the product ``Wq' Wk`` of the *weights*, one ``(H, H)`` matrix a head, takes the place of both, and
  ``Wo Wv`` that of the way back. The few decoder positions carry the work instead of all tokens. (The same
  trade as the weight absorption of multi-head latent attention, DeepSeek-V2, arXiv 2405.04434, section 2.1.)
- The operations come from an `Ops`: plain torch with gradients written out (`packed_ops`), or fused Triton
  kernels (`packed_kernels`) on CUDA.

Shape letters are those of `catalex.types`; ``M`` tokens of all histories of a batch, ``P`` decoder positions,
``h`` heads of width ``d``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from catalex.models.packed_ops import Groups, TorchOps
from catalex.models.packed_rows import Rows
from catalex.models.packed_triton import TritonOps, runs
from catalex.models.t5 import BUCKETS, IGNORE, PAD, T5, relative_buckets

Reduction = Literal["mean", "sum"]


class Ops(Protocol):
    """The operations of one pass; each object counts its dropout sites, so it serves one pass only."""

    def embed(self, table: Tensor, tokens: Tensor) -> Tensor:
        """Rows ``(M, H)`` of the table ``(V, H)``, dropped out."""

    def gains(self, gains: list[Tensor]) -> list[Any]:
        """The gains of all norms, in the form in which `add_norm` wants each, once."""

    def biases(self, bias: Tensor, users: int) -> list[Any]:
        """A relative bias ``(h, T, T)`` in the form in which `self_attention` wants it, for each layer."""

    def add_norm(
        self, x: Tensor, y: Tensor | None, gain: Any, *, last: bool = False
    ) -> tuple[Tensor, Tensor]:
        """``x' = x + dropout(y)`` and its RMS norm, both ``(M, H)``; None for y adds nothing.

        The norm is dropped out too if it is the `last` of a stack."""

    def feed_forward(self, x: Tensor, wi: Tensor, wo: Tensor) -> Tensor:
        """``dropout(relu(x wi')) wo'`` of ``(M, H)``."""

    def self_attention(self, qkv: Tensor, bias: Any, layout: Any) -> Tensor:
        """Attended values ``(M, h d)`` of ``(M, 3 h d)`` with relative bias ``(h, T, T)``."""

    def cross_attention(self, queries: Tensor, memory: Tensor, layout: Any) -> Tensor:
        """Weighted means ``(B P, h, H)`` of each example's memory ``(M, H)``, for as many queries."""

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sum of the losses of the rows ``(B P, V)`` whose label is not `IGNORE`."""


def packed_loss(
    model: T5,
    batch: Mapping[str, Tensor],
    reduction: Reduction = "mean",
    *,
    kernels: bool | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """The loss `T5.loss` has for the same examples, from a packed batch (`catalex.training.packing`).

    Args:
        model: Read through its modules; gradients arrive in its parameters as usual.
        batch: ``tokens (M,)`` and ``labels (B, P)``, with ``widths (G, 2)`` (groups of equal length) or
            ``segments (M,)``, ``starts`` and ``lengths (B,)`` (rows of fixed length).
        reduction: Of the cross-entropy over labels that are not `IGNORE`.
        kernels: Use the Triton kernels; None: where they can run (`packed_triton.runs`).
        temperature: The logits are divided by it.
    """
    tokens, labels = batch["tokens"], batch["labels"]
    device = tokens.device.type
    autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else model.embedding.weight.dtype
    with torch.autocast(device, enabled=False):
        return _loss(model, batch, tokens, labels, reduction, dtype, kernels, temperature)


def _loss(
    model: T5,
    batch: Mapping[str, Tensor],
    tokens: Tensor,
    labels: Tensor,
    reduction: Reduction,
    dtype: torch.dtype,
    kernels: bool | None,
    temperature: float,
) -> Tensor:
    o = model.options
    ops, layout = _ops(model, batch, dtype, kernels)
    weight = _weights(model, dtype)
    absorbed = _absorbed(model, dtype)

    norms = [name for name, w in weight.items() if w.ndim == 1]
    gain = dict(zip(norms, ops.gains([weight[name] for name in norms]), strict=True))

    # encoder, over M tokens
    bias = ops.biases(_bias(model.encoder_bias.weight, layout.longest, causal=False), o.layers)
    x = ops.embed(model.embedding.weight, tokens)
    y: Tensor | None = None
    for i in range(o.layers):
        x, n = ops.add_norm(x, y, gain[f"encoder.{i}.attention_norm.weight"])
        qkv = F.linear(n, weight[f"encoder.{i}.attention.qkv.weight"])
        y = F.linear(ops.self_attention(qkv, bias[i], layout), weight[f"encoder.{i}.attention.out.weight"])
        x, n = ops.add_norm(x, y, gain[f"encoder.{i}.feed_forward_norm.weight"])
        y = ops.feed_forward(
            n,
            weight[f"encoder.{i}.feed_forward.wi.weight"],
            weight[f"encoder.{i}.feed_forward.wo.weight"],
        )
    memory = ops.add_norm(x, y, gain["encoder_norm.weight"], last=True)[1]

    # decoder, over B x P positions
    positions = labels.shape[1]
    own = layout.decoder(len(labels), positions, tokens.device)
    given = torch.cat([torch.full_like(labels[:, :1], PAD), labels[:, :-1].clamp(min=PAD)], dim=1)
    bias = ops.biases(_bias(model.decoder_bias.weight, own.longest, causal=True), o.layers)
    x, y = ops.embed(model.embedding.weight, given.flatten()), None
    for i in range(o.layers):
        x, n = ops.add_norm(x, y, gain[f"decoder.{i}.attention_norm.weight"])
        qkv = F.linear(n, weight[f"decoder.{i}.attention.qkv.weight"])
        y = F.linear(ops.self_attention(qkv, bias[i], own), weight[f"decoder.{i}.attention.out.weight"])
        x, n = ops.add_norm(x, y, gain[f"decoder.{i}.cross_norm.weight"])
        asking, answering = absorbed[i]
        queries = F.linear(n, asking).unflatten(1, (o.heads, o.hidden))
        y = ops.cross_attention(queries, memory, layout).flatten(1) @ answering
        x, n = ops.add_norm(x, y, gain[f"decoder.{i}.feed_forward_norm.weight"])
        y = ops.feed_forward(
            n,
            weight[f"decoder.{i}.feed_forward.wi.weight"],
            weight[f"decoder.{i}.feed_forward.wo.weight"],
        )
    n = ops.add_norm(x, y, gain["decoder_norm.weight"], last=True)[1]
    logits = F.linear(n * (o.hidden**-0.5 / temperature), weight["embedding.weight"])
    total = ops.cross_entropy(logits, labels.flatten())
    return total if reduction == "sum" else total / (labels != IGNORE).sum()


def _ops(model: T5, batch: Mapping[str, Tensor], dtype: torch.dtype, kernels: bool | None) -> tuple[Ops, Any]:
    o = model.options
    rate = o.dropout if model.training else 0.0
    if "segments" not in batch:
        return TorchOps(rate, o.heads, dtype), Groups.of(batch)
    layout = Rows.of(batch)
    device = batch["tokens"].device
    if kernels is None:
        kernels = runs(o, layout.capacity, device)
    if kernels:
        return TritonOps(rate, o.heads, device, dtype), layout
    return TorchOps(rate, o.heads, dtype), layout


# --- weights ------------------------------------------------------------------------------------------------


class _Cast(torch.autograd.Function):
    """Copies of all weights in another precision: one kernel there, and one back for all gradients."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.dtypes = [w.dtype for w in weights]
        copies = [torch.empty_like(w, dtype=dtype) for w in weights]
        torch._foreach_copy_(copies, list(weights))
        return tuple(copies)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        full = [torch.empty_like(g, dtype=d) for g, d in zip(gradients, ctx.dtypes, strict=True)]
        torch._foreach_copy_(full, list(gradients))
        return (None, *full)


def _weights(model: T5, dtype: torch.dtype) -> dict[str, Tensor]:
    """All weights by name: matrices in `dtype`, gains as they are (norms are computed in float32)."""
    found: dict[str, Tensor] = dict(model.named_parameters())
    cast = [name for name, w in found.items() if w.ndim == 2 and w.dtype != dtype and ".cross." not in name]
    if cast:
        copies = _Cast.apply(dtype, *(found[name] for name in cast))  # type: ignore[no-untyped-call]
        found |= dict(zip(cast, copies, strict=True))
    return found


def _bias(table: Tensor, length: int, *, causal: bool) -> Tensor:
    """Relative position bias ``(h, length, length)`` of a table ``(BUCKETS, h)``; -inf at what is to come.

    As a product with one-hot rows, whose gradient is a product as well: that of an indexed read is sorted on
    a GPU, in a dozen kernels, and adds up in no fixed order.
    """
    hot, future = _positions(length, causal, table.device)
    return (table.t() @ hot).view(-1, length, length) + future


@lru_cache(maxsize=32)
def _positions(length: int, causal: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """One-hot buckets ``(BUCKETS, length * length)``, and 0 or -inf ``(length, length)``."""
    buckets = relative_buckets(length, length, bidirectional=not causal).flatten()
    hot = F.one_hot(buckets, BUCKETS).t().float()
    future = torch.zeros(length, length)
    if causal:
        future = torch.full((length, length), -torch.inf).triu(1)
    return hot.contiguous().to(device), future.to(device)


class _Absorb(torch.autograd.Function):
    """``left_i' right_i`` of many pairs of ``(d, H)`` matrices in one product, and both gradients in two."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, heads: int, *weights: Tensor) -> tuple[Tensor, ...]:
        q, kv, out = weights[0::3], weights[1::3], weights[2::3]
        left = torch.stack(kv).view(-1, q[0].shape[0] // heads, q[0].shape[1])  # (l 2 h, d, H)
        right = torch.stack([w for pair in zip(q, (o.t() for o in out), strict=True) for w in pair])
        right = right.view_as(left)
        ctx.save_for_backward(left, right)
        made = left.transpose(1, 2) @ right  # (l 2 h, H, H)
        return made.to(dtype).view(2 * len(q), -1, left.shape[2]).unbind(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        left, right = ctx.saved_tensors
        d_made = torch.stack(gradients).to(left.dtype).view(len(left), left.shape[2], -1)
        d_kv = (right @ d_made.transpose(1, 2)).view(len(gradients) // 2, -1, left.shape[2])
        d_right = (left @ d_made).view(len(gradients), -1, left.shape[2])
        found: list[Tensor | None] = [None, None]
        for layer, d_pair in enumerate(d_kv.unbind(0)):
            found += [d_right[2 * layer], d_pair, d_right[2 * layer + 1].t()]
        return tuple(found)


def _absorbed(model: T5, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Of each decoder layer ``Wk' Wq`` and ``(Wo Wv)'``, each ``(h H, H)``, made in float32."""
    crosses = [block.cross for block in model._decoder_blocks]
    weights = [w for c in crosses for w in (c.q.weight, c.kv.weight, c.out.weight)]
    made = _Absorb.apply(dtype, model.options.heads, *weights)  # type: ignore[no-untyped-call]
    return list(zip(made[0::2], made[1::2], strict=True))
