"""A T5's weights as decoding wants them: transposed, with the norms' gains, in the precision of products.

A product of few rows with a wide matrix is up to twice as fast when the matrix lies in memory as it is read,
input by output; and a gain multiplied into the matrix that follows it saves one pass over the activations.
Both take a copy of the weights (milliseconds), so on a CPU the copy is kept with the model until a weight
changes. On other devices nothing is kept: a captured training step alters weights without a trace that could
be seen here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from catalex.models.t5 import T5, DecoderBlock, EncoderBlock, relative_buckets

LENGTHS = 64
"""Lengths whose position bias is kept."""


@dataclass(frozen=True)
class LayerWeights:
    """Matrices ``(in, out)`` of one layer; the cross-attention's are None in the encoder."""

    qkv: Tensor
    out: Tensor
    wi: Tensor
    wo: Tensor
    cross_q: Tensor | None = None
    cross_kv: Tensor | None = None
    cross_out: Tensor | None = None


@dataclass(frozen=True)
class Weights:
    """All that decoding reads of a T5.

    Attributes:
        embedding: ``(V, H)`` float32.
        head: ``(H, V)`` the tied embedding with the last norm's gain and the output's factor in it.
        encoder_bias: ``(32, h)`` float32 bias of each relative position bucket; `decoder_bias` likewise.
        heads: h, of `width` d.
        dtype: Of the products; everything else is float32.
        epsilon: What a norm adds to the squared length of a row.
    """

    embedding: Tensor
    head: Tensor
    encoder: tuple[LayerWeights, ...]
    decoder: tuple[LayerWeights, ...]
    encoder_bias: Tensor
    decoder_bias: Tensor
    heads: int
    width: int
    dtype: torch.dtype
    epsilon: Tensor
    _encoder_biases: dict[int, Tensor] = field(default_factory=dict)
    _decoder_biases: dict[int, Tensor] = field(default_factory=dict)

    def bias_of_encoder(self, length: int) -> Tensor:
        """``(1, h, length, length)`` bias of every query and key."""
        if length not in self._encoder_biases:
            if len(self._encoder_biases) >= LENGTHS:
                self._encoder_biases.clear()
            buckets = relative_buckets(length, length, bidirectional=True).to(self.embedding.device)
            bias = self.encoder_bias[buckets].permute(2, 0, 1).contiguous()
            self._encoder_biases[length] = bias.unsqueeze(0)
        return self._encoder_biases[length]

    def bias_of_decoder(self, position: int) -> Tensor:
        """``(position + 1, h)`` bias of each key for the query at `position`."""
        if position not in self._decoder_biases:
            buckets = relative_buckets(position + 1, position + 1, bidirectional=False)[-1]
            self._decoder_biases[position] = self.decoder_bias[buckets.to(self.embedding.device)]
        return self._decoder_biases[position]


SAMPLES = 64
"""Values of each parameter that are compared to see whether it changed."""


class _Steps:
    """Steps of all optimisers of the process so far; counted from the first time that weights are kept."""

    def __init__(self) -> None:
        self.count = 0
        self._counting = False

    def watch(self) -> None:
        if not self._counting:
            self._counting = True
            register_optimizer_step_post_hook(self._one_more)

    def _one_more(self, *_: object) -> None:
        self.count += 1


_steps = _Steps()


class _Kept:
    """Prepared weights, and what tells whether the model still has those that they were made of.

    Places and versions of the parameters do not tell enough, because torch's fused optimisers raise no
    version; but every optimiser changes nearly every value, so a sample of each parameter tells the rest. Its
    values lie far apart, which makes reading them dear, so it is taken only when an optimiser has stepped.
    """

    def __init__(self, model: T5, dtype: torch.dtype) -> None:
        # parts, not the model itself: what is kept for a model must not keep it alive
        self._parts = [part for part in model.modules() if part._parameters]
        self._marks = self._marked()
        views = [weight.detach().view(-1) for weight in model.parameters()]
        # an odd step does not stay in the same columns
        self._views = [view[:: view.numel() // SAMPLES | 1] for view in views]
        _steps.watch()
        self._steps = _steps.count
        self._sample = torch.cat(self._views)
        self.weights = _prepared(model, dtype)

    def _marked(self) -> list[tuple[int, int]]:
        weights = (weight for part in self._parts for weight in part._parameters.values())
        return [(weight.data_ptr(), weight._version) for weight in weights if weight is not None]

    def holds(self) -> bool:
        """Whether the parameters are what they were."""
        if self._marked() != self._marks:
            return False
        steps = _steps.count  # before the sample: a step of another thread in between is looked at next time
        same = steps == self._steps or torch.equal(torch.cat(self._views), self._sample)
        if same:
            self._steps = steps
        return same


_kept: WeakKeyDictionary[T5, dict[torch.dtype, _Kept]] = WeakKeyDictionary()


@torch.no_grad()
def weights_of(model: T5, dtype: torch.dtype) -> Weights:
    """The model's weights for decoding, from an earlier call where no weight changed since."""
    if model.embedding.weight.device.type != "cpu":
        return _prepared(model, dtype)
    kept = _kept.setdefault(model, {})
    if dtype not in kept or not kept[dtype].holds():
        kept[dtype] = _Kept(model, dtype)
    return kept[dtype].weights


def _prepared(model: T5, dtype: torch.dtype) -> Weights:
    def turned(weight: Tensor, gain: Tensor | None = None) -> Tensor:
        """``(in, out)`` of a linear layer's ``(out, in)``, behind a norm with `gain`.

        A norm divides by the root mean square, H**0.5 times smaller than the length which `forward` takes.
        """
        found = weight.detach().float()
        return (found if gain is None else found * (gain * o.hidden**0.5)).t().to(dtype).contiguous()

    o, embedding = model.options, model.embedding.weight.detach().float()

    def layer(block: EncoderBlock | DecoderBlock) -> LayerWeights:
        attention, feed_forward = block.attention, block.feed_forward
        own = LayerWeights(
            qkv=turned(attention.qkv.weight, block.attention_norm.weight),
            out=turned(attention.out.weight),
            wi=turned(feed_forward.wi.weight, block.feed_forward_norm.weight),
            wo=turned(feed_forward.wo.weight),
        )
        if isinstance(block, EncoderBlock):
            return own
        return LayerWeights(
            own.qkv,
            own.out,
            own.wi,
            own.wo,
            cross_q=turned(block.cross.q.weight, block.cross_norm.weight),
            cross_kv=turned(block.cross.kv.weight, model.encoder_norm.weight),
            cross_out=turned(block.cross.out.weight),
        )

    return Weights(
        embedding=embedding,
        head=turned(embedding, model.decoder_norm.weight * o.hidden**-0.5),
        encoder=tuple(layer(block) for block in cast("Iterable[EncoderBlock]", model.encoder)),
        decoder=tuple(layer(block) for block in cast("Iterable[DecoderBlock]", model.decoder)),
        encoder_bias=model.encoder_bias.weight.detach().float().clone(),
        decoder_bias=model.decoder_bias.weight.detach().float().clone(),
        heads=o.heads,
        width=o.head_width,
        dtype=dtype,
        epsilon=torch.full((), 1e-6 * o.hidden, device=embedding.device),
    )
