"""T5 (version 1.0) encoder-decoder over item tokens, in one file.

Our own module, because whole-step CUDA graphs and beams that share one user's cross-attention need control
over every operation; its weights are those of ``transformers.T5ForConditionalGeneration`` and load there
unchanged (`t5_folder`). Shape letters are those of `catalex.types`; ``h`` heads of width ``d``.

Source: Raffel et al. 2020 (relative position buckets, RMS-style norm without bias, pre-norm, ReLU
feed-forward, tied embeddings with the output scaled by H**-0.5, attention scores unscaled). Sizes: TIGER
(arXiv 2305.05065).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from catalex.options import Options, Positive, Rate

PAD = 0
"""Token of padding, and the token that starts the decoder."""

IGNORE = -100
"""Label that adds nothing to the loss."""


class T5Options(Options):
    """Sizes of the model."""

    preset: Literal["tiger", "mtg", "mini"] | None = None
    """Named sizes: `tiger` (TIGER, LETTER-TIGER: 4+4 layers, 1024, 6 x 64), `mtg` (MTGRec: 3+3 layers, 512,
    4 x 64), `mini` (ours, for small catalogues on a CPU: 2+2 layers, 64, 256, 4 x 16). Sizes given beside it
    win."""
    layers: Positive = 4
    """Encoder layers, and as many decoder layers."""
    hidden: Positive = 128
    """H, width of the residual stream."""
    feed_forward: Positive = 1024
    """Width inside the feed-forward block."""
    heads: Positive = 6
    """Attention heads; heads x head_width need not equal hidden."""
    head_width: Positive = 64
    """Width of one head."""
    dropout: Rate = 0.1
    """Dropout on embeddings, attention weights and every sub-layer's output."""

    def resolved(self) -> T5Options:
        """The same options with the preset written out."""
        if self.preset is None:
            return self
        sizes: dict[str, Any] = {
            **PRESETS[self.preset],
            **self.model_dump(exclude_unset=True, exclude={"preset"}),
        }
        return T5Options(**sizes)


PRESETS: dict[str, dict[str, int]] = {
    "tiger": {"layers": 4, "hidden": 128, "feed_forward": 1024, "heads": 6, "head_width": 64},
    "mtg": {"layers": 3, "hidden": 128, "feed_forward": 512, "heads": 4, "head_width": 64},
    "mini": {"layers": 2, "hidden": 64, "feed_forward": 256, "heads": 4, "head_width": 16},
}
"""Sizes by preset name; sources: spec of each paper's released configuration."""

BUCKETS = 32
MAX_DISTANCE = 128

KeysValues = tuple[Tensor, Tensor]


def relative_buckets(queries: int, keys: int, *, bidirectional: bool) -> Tensor:
    """``(queries, keys)`` int64 bucket of each relative position (T5: half exact, half logarithmic)."""
    distance = torch.arange(keys)[None, :] - torch.arange(queries)[:, None]
    count = BUCKETS
    base = torch.zeros_like(distance)
    if bidirectional:
        count //= 2
        base = (distance > 0).long() * count
        distance = distance.abs()
    else:
        distance = (-distance).clamp(min=0)
    exact = count // 2
    logarithmic = (
        exact
        + (
            torch.log(distance.clamp(min=1).float() / exact)
            / math.log(MAX_DISTANCE / exact)
            * (count - exact)
        ).long()
    )
    return base + torch.where(distance < exact, distance, logarithmic.clamp(max=count - 1))


class Norm(nn.Module):
    """RMS norm with a gain and no bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (self.weight.shape[0],), self.weight, 1e-6)


class SelfAttention(nn.Module):
    """Multi-head self-attention with an additive bias; one product makes queries, keys and values."""

    def __init__(self, o: T5Options) -> None:
        super().__init__()
        self.heads, self.width, self.dropout = o.heads, o.head_width, o.dropout
        self.qkv = nn.Linear(o.hidden, 3 * o.heads * o.head_width, bias=False)
        self.out = nn.Linear(o.heads * o.head_width, o.hidden, bias=False)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys, values ``(B, h, T, d)`` of ``(B, T, H)``."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, self.width)).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = self.project(x)
        attended = _attend(q, k, v, bias, self.dropout if self.training else 0.0)
        out: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return out


class CrossAttention(nn.Module):
    """Decoder positions look at encoder outputs; no relative bias (as in T5)."""

    def __init__(self, o: T5Options) -> None:
        super().__init__()
        self.heads, self.width, self.dropout = o.heads, o.head_width, o.dropout
        self.q = nn.Linear(o.hidden, o.heads * o.head_width, bias=False)
        self.kv = nn.Linear(o.hidden, 2 * o.heads * o.head_width, bias=False)
        self.out = nn.Linear(o.heads * o.head_width, o.hidden, bias=False)

    def keys_values(self, encoded: Tensor) -> KeysValues:
        """Keys and values ``(B, h, T, d)`` of the encoder output ``(B, T, H)``; computed once per user."""
        k, v = self.kv(encoded).unflatten(-1, (2, self.heads, self.width)).permute(2, 0, 3, 1, 4).unbind(0)
        return k, v

    def forward(self, x: Tensor, memory: KeysValues, bias: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (self.heads, self.width)).transpose(1, 2)
        attended = _attend(q, *memory, bias, self.dropout if self.training else 0.0)
        out: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return out


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, dropout: float) -> Tensor:
    """Unscaled attention (T5) with weights in float32; ``bias`` broadcasts to ``(B, h, Tq, Tk)``."""
    weights = torch.softmax((q @ k.transpose(-1, -2)).float() + bias, dim=-1).to(v.dtype)
    return F.dropout(weights, dropout, training=dropout > 0) @ v


class FeedForward(nn.Module):
    """ReLU feed-forward block."""

    def __init__(self, o: T5Options) -> None:
        super().__init__()
        self.wi = nn.Linear(o.hidden, o.feed_forward, bias=False)
        self.wo = nn.Linear(o.feed_forward, o.hidden, bias=False)
        self.dropout = o.dropout

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.wo(F.dropout(F.relu(self.wi(x)), self.dropout, self.training))
        return out


class EncoderBlock(nn.Module):
    def __init__(self, o: T5Options) -> None:
        super().__init__()
        self.attention_norm, self.attention = Norm(o.hidden), SelfAttention(o)
        self.feed_forward_norm, self.feed_forward = Norm(o.hidden), FeedForward(o)
        self.dropout = o.dropout

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = x + F.dropout(self.attention(self.attention_norm(x), bias), self.dropout, self.training)
        return x + F.dropout(self.feed_forward(self.feed_forward_norm(x)), self.dropout, self.training)


class DecoderBlock(nn.Module):
    def __init__(self, o: T5Options) -> None:
        super().__init__()
        self.attention_norm, self.attention = Norm(o.hidden), SelfAttention(o)
        self.cross_norm, self.cross = Norm(o.hidden), CrossAttention(o)
        self.feed_forward_norm, self.feed_forward = Norm(o.hidden), FeedForward(o)
        self.dropout = o.dropout

    def forward(self, x: Tensor, bias: Tensor, memory: KeysValues, memory_bias: Tensor) -> Tensor:
        x = x + F.dropout(self.attention(self.attention_norm(x), bias), self.dropout, self.training)
        x = x + F.dropout(self.cross(self.cross_norm(x), memory, memory_bias), self.dropout, self.training)
        return x + F.dropout(self.feed_forward(self.feed_forward_norm(x)), self.dropout, self.training)

    def step(
        self, x: Tensor, bias: Tensor, cache: KeysValues | None, memory: KeysValues, memory_bias: Tensor
    ) -> tuple[Tensor, KeysValues]:
        """One position of W beams ``x (B, W, H)``; `cache` holds ``(B, h, W, p, d)`` of earlier positions."""
        q, k, v = self.attention.project(self.attention_norm(x))  # each (B, h, W, d)
        keys, values = k.unsqueeze(3), v.unsqueeze(3)
        if cache is not None:
            keys, values = torch.cat([cache[0], keys], dim=3), torch.cat([cache[1], values], dim=3)
        own = _attend(q.unsqueeze(3), keys, values, bias, 0.0).squeeze(3)  # (B, h, W, d)
        x = x + self.attention.out(own.transpose(1, 2).flatten(2))
        x = x + self.cross(self.cross_norm(x), memory, memory_bias)
        return x + self.feed_forward(self.feed_forward_norm(x)), (keys, values)


@dataclass
class Memory:
    """What decoding needs to know of B encoded histories.

    Attributes:
        layers: Cross-attention keys and values ``(B, h, T, d)`` of each decoder layer.
        bias: ``(B, 1, 1, T)`` 0 at tokens, -inf-like at padding.
    """

    layers: list[KeysValues]
    bias: Tensor


class T5(nn.Module):
    """Encoder-decoder over a vocabulary of V tokens with tied embeddings."""

    def __init__(self, vocabulary: int, options: T5Options) -> None:
        super().__init__()
        self.options = options.resolved()
        self.vocabulary = vocabulary
        o = self.options
        self.embedding = nn.Embedding(vocabulary, o.hidden)
        self.encoder_bias = nn.Embedding(BUCKETS, o.heads)
        self.decoder_bias = nn.Embedding(BUCKETS, o.heads)
        self.encoder = nn.ModuleList(EncoderBlock(o) for _ in range(o.layers))
        self.decoder = nn.ModuleList(DecoderBlock(o) for _ in range(o.layers))
        self.encoder_norm, self.decoder_norm = Norm(o.hidden), Norm(o.hidden)
        self._buckets: dict[tuple[int, bool, torch.device], Tensor] = {}
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """T5's initialisation (Mesh TensorFlow factors), with embeddings ~ N(0, 1)."""
        o = self.options
        inner = o.heads * o.head_width
        self.embedding.weight.normal_(0, 1.0)
        self.encoder_bias.weight.normal_(0, o.hidden**-0.5)
        self.decoder_bias.weight.normal_(0, o.hidden**-0.5)
        for block in [*self.encoder, *self.decoder]:
            attention = block.attention
            attention.qkv.weight[:inner].normal_(0, (o.hidden * o.head_width) ** -0.5)
            attention.qkv.weight[inner:].normal_(0, o.hidden**-0.5)
            attention.out.weight.normal_(0, inner**-0.5)
            if isinstance(block, DecoderBlock):
                block.cross.q.weight.normal_(0, (o.hidden * o.head_width) ** -0.5)
                block.cross.kv.weight.normal_(0, o.hidden**-0.5)
                block.cross.out.weight.normal_(0, inner**-0.5)
            block.feed_forward.wi.weight.normal_(0, o.hidden**-0.5)
            block.feed_forward.wo.weight.normal_(0, o.feed_forward**-0.5)

    # --- training -------------------------------------------------------------------------------------------

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Logits ``(B, P, V)`` at the P positions of ``labels (B, P)``, for histories ``tokens (B, T)``."""
        memory = self.remember(tokens)
        starts = torch.full_like(labels[:, :1], PAD)
        x = self._embed(torch.cat([starts, labels[:, :-1].clamp(min=PAD)], dim=1))
        length = labels.shape[1]
        future = torch.full((length, length), -math.inf, device=x.device).triu(1)
        bias = self._bias(length, causal=True) + future
        for block, layer in zip(self.decoder, memory.layers, strict=True):
            x = block(x, bias, layer, memory.bias)
        return self._logits(x)

    def loss(
        self,
        tokens: Tensor,
        labels: Tensor,
        reduction: Literal["mean", "sum"] = "mean",
        temperature: float = 1.0,
    ) -> Tensor:
        """Mean (or sum) of the cross-entropy over the label positions that are not `IGNORE`, all V tokens in
        the softmax of the logits divided by `temperature`."""
        logits = self(tokens, labels).flatten(0, 1).float() / temperature
        return F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORE, reduction=reduction)

    # --- decoding -------------------------------------------------------------------------------------------

    def encode(self, tokens: Tensor) -> Tensor:
        """Encoder output ``(B, T, H)`` of right-padded ``tokens (B, T)``."""
        x = self._embed(tokens)
        bias = self._bias(tokens.shape[1], causal=False) + _padding_bias(tokens)
        for block in self.encoder:
            x = block(x, bias)
        return F.dropout(self.encoder_norm(x), self.options.dropout, self.training)

    def remember(self, tokens: Tensor) -> Memory:
        """Encode histories once and make every decoder layer's cross-attention keys and values."""
        encoded = self.encode(tokens)
        return Memory(
            [block.cross.keys_values(encoded) for block in self._decoder_blocks], _padding_bias(tokens)
        )

    def step(
        self, tokens: Tensor, caches: list[KeysValues] | None, memory: Memory
    ) -> tuple[Tensor, list[KeysValues]]:
        """Logits ``(B, W, V)`` after ``tokens (B, W)``, the newest token of W beams of each of B histories.

        `caches` holds, for each layer, keys and values ``(B, h, W, p, d)`` of the p earlier positions *of the
        same beams*; None at the first position. The returned caches include this position.
        """
        x = self._embed(tokens)
        position = 0 if caches is None else caches[0][0].shape[3]
        # the row of the newest query: (h, 1, p + 1), the same for every beam
        bias = self._bias(position + 1, causal=True)[:, :, -1:, :].unsqueeze(2)
        updated: list[KeysValues] = []
        for i, block in enumerate(self._decoder_blocks):
            x, cache = block.step(
                x, bias, None if caches is None else caches[i], memory.layers[i], memory.bias
            )
            updated.append(cache)
        return self._logits(x), updated

    # --- parts ----------------------------------------------------------------------------------------------

    @property
    def _decoder_blocks(self) -> Iterable[DecoderBlock]:
        """The decoder's layers under their own type, which `nn.ModuleList` forgets."""
        return cast("Iterable[DecoderBlock]", self.decoder)

    def _embed(self, tokens: Tensor) -> Tensor:
        return F.dropout(self.embedding(tokens), self.options.dropout, self.training)

    def _logits(self, x: Tensor) -> Tensor:
        x = F.dropout(self.decoder_norm(x), self.options.dropout, self.training)
        return F.linear(x * self.options.hidden**-0.5, self.embedding.weight)

    def _bias(self, length: int, *, causal: bool) -> Tensor:
        """Relative position bias ``(1, h, length, length)``."""
        table = self.decoder_bias if causal else self.encoder_bias
        key = (length, causal, table.weight.device)
        if key not in self._buckets:
            self._buckets[key] = relative_buckets(length, length, bidirectional=not causal).to(
                table.weight.device
            )
        bias: Tensor = table(self._buckets[key])
        return bias.permute(2, 0, 1).unsqueeze(0)

    @property
    def parameter_count(self) -> int:
        """Number of trainable values (the tied embedding counted once)."""
        return sum(p.numel() for p in self.parameters())


def _padding_bias(tokens: Tensor) -> Tensor:
    """``(B, 1, 1, T)`` 0 at tokens, the smallest float32 at padding (finite, so a row of padding is too)."""
    return (tokens == PAD)[:, None, None, :] * torch.finfo(torch.float32).min
