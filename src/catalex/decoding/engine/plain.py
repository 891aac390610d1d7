"""The operations in plain torch: runs anywhere, in float32 exactly; every kernel's tests hold it against
these.

Letters as in `program` and `weights`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from catalex.decoding.engine.index import StaticIndex, StaticLevel
from catalex.decoding.engine.masks import Closed, closed_nodes
from catalex.decoding.engine.program import Beams
from catalex.decoding.engine.weights import Weights
from catalex.models.t5 import MAX_DISTANCE, PAD

DEAD = 2**31 - 1
"""Badness of a candidate that may not be chosen."""


class Plain:
    """`Operations` over packed weights of any dtype; residuals, norms, softmax and scores in float32."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        o = weights.options
        self.heads, self.width = o.heads, o.head_width

    # --- encoder --------------------------------------------------------------------------------------------

    def encode(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values ``(l, 2, B, h, T, d)`` of all decoder layers, and the padding's bias."""
        w = self.weights
        x = w.table[tokens]  # (B, T, H)
        padding = padding_bias(lengths, tokens.shape[1])
        bias = encoder_bias(w, tokens.shape[1]) + padding  # (B, h, T, T)
        for number in range(w.options.layers):
            x = self.encoder_attention(x, number, bias)
            x = self.feed_forward(x, w.encoder, number)
        made = normed(x, w.dtype) @ w.keys_values
        shape = (w.options.layers, 2, self.heads, self.width)
        return made.unflatten(-1, shape).permute(2, 3, 0, 4, 1, 5), padding

    def encoder_attention(self, x: Tensor, number: int, bias: Tensor) -> Tensor:
        """``(B, T, H)`` after self-attention and the residual."""
        w = self.weights.encoder
        made = normed(x, self.weights.dtype) @ w["qkv"][number]
        q, k, v = made.unflatten(-1, (3, self.heads, self.width)).permute(2, 0, 3, 1, 4).unbind(0)
        return x + attend(q, k, v, bias).transpose(1, 2).flatten(2) @ w["out"][number]

    def feed_forward(self, x: Tensor, w: dict[str, Tensor], number: int) -> Tensor:
        """`x` of any leading shape after the feed-forward block and the residual."""
        return x + torch.relu(normed(x, self.weights.dtype) @ w["wi"][number]) @ w["wo"][number]

    # --- decoder --------------------------------------------------------------------------------------------

    def root(self, users: int) -> Tensor:
        return self.weights.table[PAD].expand(users, -1)

    def cache(self, rows: int) -> Tensor:
        """``(l, L - 1, R, 2, h, d)``."""
        w = self.weights
        shape = (w.options.layers, max(w.positions - 1, 1), rows, 2, self.heads, self.width)
        return torch.empty(shape, dtype=w.dtype, device=w.device)

    def layer(
        self,
        x: Tensor,
        number: int,
        position: int,
        ancestors: Tensor,
        cache: Tensor,
        memory: tuple[Tensor, Tensor],
    ) -> Tensor:
        x = self.self_attention(x, number, position, ancestors, cache)
        x = self.cross(x, number, memory)
        return self.feed_forward(x, self.weights.decoder, number)

    def self_attention(
        self, x: Tensor, number: int, position: int, ancestors: Tensor, cache: Tensor
    ) -> Tensor:
        """Each row attends to itself and to its ancestors' rows of the earlier positions."""
        w = self.weights
        made = (normed(x, w.dtype) @ w.decoder["qkv"][number]).unflatten(-1, (3, self.heads, self.width))
        if position < w.positions - 1:
            cache[number, position, : len(x)] = made[:, 1:]
        earlier = [cache[number, slot][ancestors[slot].long()] for slot in range(position)]
        keys_values = torch.stack([*earlier, made[:, 1:]], dim=1)  # (R, p + 1, 2, h, d)
        k, v = keys_values.permute(2, 0, 3, 1, 4).unbind(0)  # (R, h, p + 1, d)
        bias = w.decoder_bias[:, : position + 1].flip(1).unsqueeze(1)  # (h, 1, p + 1)
        own = attend(made[:, 0].unsqueeze(2), k, v, bias)
        return x + own.flatten(1) @ w.decoder["out"][number]

    def cross(self, x: Tensor, number: int, memory: tuple[Tensor, Tensor]) -> Tensor:
        """The rows of a user attend to the encoder's output."""
        w, (keys_values, bias) = self.weights, memory
        k, v = keys_values[number].unbind(0)
        q = (normed(x, w.dtype) @ w.decoder["q"][number]).view(len(k), -1, self.heads, self.width)
        attended = attend(q.transpose(1, 2), k, v, bias).transpose(1, 2)
        return x + attended.reshape(len(x), -1) @ w.decoder["cross_out"][number]

    # --- selection ------------------------------------------------------------------------------------------

    def head(self, x: Tensor, level: StaticLevel) -> tuple[Tensor, Tensor]:
        w = self.weights
        logits = (normed(x, w.dtype) @ w.head)[:, : w.vocabulary].float()
        return logits[:, level.low : level.low + level.span].contiguous(), logits.logsumexp(1)

    def closed(self, index: StaticIndex, excluded: Tensor) -> list[Closed]:
        return closed_nodes(index, excluded)

    def close(
        self, logits: Tensor, beams: Beams, index: StaticIndex, depth: int, closed: list[Closed]
    ) -> None:
        self._close(logits, beams, index.levels[depth], closed[depth])

    @staticmethod
    def _close(logits: Tensor, beams: Beams, level: StaticLevel, closed: Closed) -> None:
        users = len(beams.name)
        is_beam = (closed.parent.unsqueeze(2) == beams.name.unsqueeze(1)) & (closed.node >= 0).unsqueeze(2)
        token = level.tokens[closed.node.clamp(min=0).long()] - level.low
        places = is_beam.int().argmax(2) * level.span + token
        values = torch.full_like(places, torch.inf, dtype=torch.float32).masked_fill(
            is_beam.any(2), -torch.inf
        )
        # the places of nodes that are not closed get +inf, which the minimum ignores
        logits.view(users, -1).scatter_reduce_(1, places.clamp(min=0), values, "amin")

    def expand(
        self,
        level: StaticLevel,
        beams: Beams,
        logits: Tensor,
        log_sums: Tensor,
        mask: tuple[Tensor, Tensor] | None,
        width: int,
        items: Tensor | None,
    ) -> Beams:
        users, above = beams.name.shape
        node = beams.name.clamp(min=0).long()
        first, end = level.starts[node], level.starts[node + 1]
        child = first.unsqueeze(2) + torch.arange(level.fan_out, device=node.device, dtype=torch.int32)
        valid = (child < end.unsqueeze(2)) & (beams.name >= 0).unsqueeze(2)  # (B, W, fan_out)
        child = child.where(valid, 0)
        if mask is not None:
            opened, chosen = mask
            valid &= opened[chosen.long()[:, None, None], child.long()] >= 0
        token = (level.tokens[child.long()] - level.low).clamp(0, level.span - 1).long()
        scores = logits.view(users, above, -1).gather(2, token) - log_sums.view(users, above, 1)
        scores = (scores + beams.score.unsqueeze(2)).clamp(max=0)
        names = child if items is None else items[child.long()]
        keys = (badness(scores).where(valid, DEAD).long() << 32) | names
        kept, places = keys.flatten(1).topk(width, dim=1, largest=False)
        if items is None:  # in the order of nodes
            _, order = (kept & DEAD).where(kept >> 32 != DEAD, DEAD).sort(dim=1)
            kept, places = kept.gather(1, order), places.gather(1, order)
        alive = (kept >> 32) != DEAD
        return Beams(
            (kept & DEAD).int().where(alive, -1),
            scores.flatten(1).gather(1, places).where(alive, -torch.inf),
            (places // level.fan_out).int().where(alive, 0),
        )

    def advance(
        self, level: StaticLevel, beams: Beams, above: int, ancestors: Tensor, position: int
    ) -> tuple[Tensor, Tensor]:
        users, width = beams.name.shape
        token = level.tokens[beams.name.clamp(min=0).long()].where(beams.name >= 0, 0)
        first = torch.arange(users, device=token.device, dtype=torch.int32).unsqueeze(1) * above
        parent = (first + beams.origin).flatten()
        followed = ancestors.new_zeros(len(ancestors), users * width)
        followed[:position] = ancestors[:position, parent.long()]
        followed[position] = parent
        return self.weights.table[token.flatten().long()], followed

    def rank(self, beams: Beams, k: int, doubt: Tensor) -> Tensor:
        keys = (badness(beams.score).where(beams.name >= 0, DEAD).long() << 32) | beams.name.clamp(min=0)
        order = keys.argsort(dim=1)[:, :k]
        found = torch.full((2, len(order), k), -1, dtype=torch.int32, device=order.device)
        scores = torch.full((len(order), k), -torch.inf, device=order.device)
        found[0, :, : order.shape[1]] = beams.name.gather(1, order)
        scores[:, : order.shape[1]] = beams.score.gather(1, order)
        found[1] = (scores + doubt.unsqueeze(1) * 0).view(torch.int32)
        return found


def normed(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` over its root mean square, as `dtype`."""
    return F.rms_norm(x, (x.shape[-1],), None, 1e-6).to(dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Unscaled attention; fused on CUDA in bf16, else spelled out with a float32 softmax."""
    if q.is_cuda and q.dtype == torch.bfloat16:
        shape = (*q.shape[:-1], k.shape[-2])
        mask = bias.to(q.dtype).expand(shape)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
    weights = torch.softmax((q @ k.transpose(-1, -2)).float() + bias, dim=-1)
    return weights.to(v.dtype) @ v


def padding_bias(lengths: Tensor, tokens: int) -> Tensor:
    """``(B, 1, 1, T)`` 0 at tokens, the smallest float32 at padding."""
    outside = torch.arange(tokens, device=lengths.device) >= lengths.unsqueeze(1)
    return (outside * torch.finfo(torch.float32).min)[:, None, None, :]


def encoder_bias(weights: Weights, tokens: int) -> Tensor:
    """``(h, T, T)`` relative bias; all distances beyond `MAX_DISTANCE` share one."""
    place = torch.arange(tokens, device=weights.device)
    distance = (place[None, :] - place[:, None]).clamp(-MAX_DISTANCE, MAX_DISTANCE) + MAX_DISTANCE
    return weights.encoder_bias[:, distance]


def badness(scores: Tensor) -> Tensor:
    """int32 that grows as a score of at most 0 falls: its bits without the sign; `DEAD` for -inf."""
    bits = scores.view(torch.int32) & DEAD
    return bits.where(scores > -torch.inf, DEAD)
