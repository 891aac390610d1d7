"""The T5 of a beam search: what `T5.remember` and `T5.step` compute, arranged so that little is moved.

* Rows: activations are ``(rows, H)``; the rows of the decoder are B users x W beams, user by user.
* A history is encoded once; its cross-attention keys and values serve all beams of its user.
* Self-attention keys and values stay where they were computed, one array for each position. A beam carries
  the row of its ancestor at each earlier position (`Past.rows`), and the few rows it needs are read from
  there. The first position has one row a user, which needs no reading by index at all.
* The residual stream is float32 and products are added to it in place.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from catalex.decoding.memory import Memory
from catalex.decoding.weights import LayerWeights, Weights
from catalex.models.t5 import PAD

LOWEST = torch.finfo(torch.float32).min
"""Added to the attention score of padding; finite, so that a row of padding gives numbers."""


@dataclass(frozen=True)
class Encoded:
    """B encoded histories.

    Attributes:
        layers: For each decoder layer keys ``(B, h, d, T)`` and values ``(B, h, T, d)``.
        padding: ``(B, 1, 1, T)`` 0 at tokens, `LOWEST` at padding; None where none is padded.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    padding: Tensor | None


@dataclass
class Past:
    """Self-attention keys and values of the positions so far.

    Attributes:
        layers: For each layer and position ``(rows, 2, h, d)``: keys and values as they were computed.
        rows: For each position but the first, ``(B * W,)`` the row of each beam's ancestor there.
        memory: Where the arrays of `layers` stand, and the logits of the newest step.
    """

    layers: list[list[Tensor]]
    rows: list[Tensor]
    memory: Memory = field(default_factory=Memory)

    def follow(self, parents: Tensor) -> None:
        """Go on with beams whose parents, at the newest position, are the rows ``parents (B * W,)``."""
        self.rows = [rows.index_select(0, parents) for rows in self.rows]
        if self.layers and len(self.layers[0]) > 1:
            self.rows.append(parents)


def encode(weights: Weights, tokens: Tensor, memory: Memory | None = None) -> Encoded:
    """Encode right-padded ``tokens (B, T)``, with every decoder layer's cross-attention keys and values.

    Nothing of what it returns stands in `memory`.
    """
    memory = memory or Memory()
    users, length = tokens.shape
    bias, padding = weights.bias_of_encoder(length), None
    is_padding = tokens == PAD
    if tokens.device.type != "cpu" or bool(is_padding.any()):  # only a CPU can look without waiting
        padding = is_padding[:, None, None, :] * LOWEST
        bias = bias + padding
    x = weights.embedding.index_select(0, tokens.flatten())
    for layer in weights.encoder:
        qkv = memory.product(_normed(x, weights), layer.qkv, "encoder")
        q, k, v = qkv.view(users, length, 3, weights.heads, weights.width).permute(2, 0, 3, 1, 4).unbind(0)
        attended = _softmax((q @ k.transpose(-1, -2)), bias) @ v
        _add_product(x, attended.transpose(1, 2).reshape(len(x), -1), layer.out)
        _feed_forward(x, layer, weights, memory)
    encoded = _normed(x, weights)
    layers = []
    for layer in weights.decoder:
        assert layer.cross_kv is not None
        both = memory.product(encoded, layer.cross_kv, "encoder")
        both = both.view(users, length, 2, weights.heads, weights.width)
        keys, values = both[:, :, 0].permute(0, 2, 3, 1), both[:, :, 1].transpose(1, 2)
        layers.append((_copied(keys), _copied(values)))
    return Encoded(tuple(layers), padding)


def step(weights: Weights, tokens: Tensor, past: Past, encoded: Encoded) -> Tensor:
    """Logits ``(B, W, V)`` float32 after ``tokens (B, W)``, the newest of each beam; `past` grows by them.

    They are overwritten by the next step with this `past`.
    """
    users, beams = tokens.shape
    position = len(past.layers[0]) if past.layers else 0
    if position == 0:
        past.layers = [[] for _ in weights.decoder]
    bias = weights.bias_of_decoder(position)
    x = weights.embedding.index_select(0, tokens.flatten())
    heads = (users, beams, weights.heads, weights.width)
    memory = past.memory
    layers = zip(weights.decoder, past.layers, encoded.layers, strict=True)
    for number, (layer, own, (keys, values)) in enumerate(layers):
        assert layer.cross_q is not None
        assert layer.cross_out is not None
        qkv = memory.product(_normed(x, weights), layer.qkv, (number, position))
        qkv = qkv.view(len(x), 3, weights.heads, weights.width)
        own.append(qkv[:, 1:])
        _add_product(x, _look_back(qkv[:, 0], own, past.rows, bias, users), layer.out)
        q = (_normed(x, weights) @ layer.cross_q).view(heads).transpose(1, 2)
        attended = _softmax(q @ keys, encoded.padding) @ values
        _add_product(x, attended.transpose(1, 2).reshape(len(x), -1), layer.cross_out)
        _feed_forward(x, layer, weights, memory)
    logits = memory.product(_normed(x, weights), weights.head, "logits")
    return logits.float().view(users, beams, -1)


def _look_back(q: Tensor, past: list[Tensor], rows: list[Tensor], bias: Tensor, users: int) -> Tensor:
    """Self-attention ``(rows, h * d)`` of queries ``q (rows, h, d)`` over their ancestors' positions."""
    if len(past) == 1:
        return past[0][:, 1].reshape(len(q), -1)  # all the weight is on the only position
    shape = (users, -1, *q.shape[1:])
    q = q.view(shape)
    pairs = [past[0].unsqueeze(1)]  # the first position has one row a user, for all its beams
    pairs += [
        kv.index_select(0, chosen).view(users, -1, *kv.shape[1:])
        for kv, chosen in zip(past[1:-1], rows, strict=True)
    ]
    pairs.append(past[-1].view(users, -1, *past[-1].shape[1:]))
    scores = torch.stack([(q * pair[:, :, 0]).sum(-1, dtype=torch.float32) for pair in pairs])
    weights = scores.add_(bias[:, None, None]).softmax(0).to(q.dtype).unsqueeze(-1)  # (p, B, W, h, 1)
    attended = weights[0] * pairs[0][:, :, 1]
    for weight, pair in zip(weights[1:], pairs[1:], strict=True):
        attended.addcmul_(weight, pair[:, :, 1])
    return attended.view(-1, q.shape[2] * q.shape[3])


def _feed_forward(x: Tensor, layer: LayerWeights, weights: Weights, memory: Memory) -> None:
    _add_product(x, memory.product(_normed(x, weights), layer.wi, "inner").relu_(), layer.wo)


def _copied(x: Tensor) -> Tensor:
    """`x` in an array of its own, also where it lies in order already."""
    return x.clone(memory_format=torch.contiguous_format)


def _normed(x: Tensor, weights: Weights) -> Tensor:
    """`x` with rows of length 1, in the precision of products; the rest of the norm is in the next matrix."""
    lengths = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    normed: Tensor = x * torch.addcmul(weights.epsilon, lengths, lengths).rsqrt_()
    return normed.to(weights.dtype)


def _add_product(x: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a product to the residual stream."""
    if left.dtype == x.dtype:
        x.addmm_(left, right)
    else:
        x.add_(left @ right)


def _softmax(scores: Tensor, bias: Tensor | None) -> Tensor:
    """Attention weights in the dtype of `scores`, computed in float32."""
    if scores.dtype == torch.float32:
        return (scores if bias is None else scores.add_(bias)).softmax(-1)
    return (scores.float() if bias is None else scores + bias).softmax(-1).to(scores.dtype)
