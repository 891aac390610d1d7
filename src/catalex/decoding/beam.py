"""Beam search over a trie: the best items of a catalogue for a batch of histories, exactly.

An item's score is the log-probability of its L code tokens under the softmax over the *whole* vocabulary,
summed; the trie only chooses among continuations (masking before the softmax would favour thin branches). The
end token is not scored. ``beam_search`` keeps the `beam` best prefixes of each level; with a beam as large as
the catalogue that is the exhaustive ranking.

Ties: prefixes of equal score are ordered by their tokens, complete identifiers by item id. The order is
total, so the result depends neither on the batch nor on the device. It is cheap because a candidate's score
and number are packed into one integer (`_keys`) and a single top-k selects by both.

Where the time goes, and what is done about it: a history is encoded once and its cross-attention keys and
values are shared by all its beams, which are queries of one user rather than rows of their own; the first
step has one row a user; no step waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from catalex.decoding.trie import ABSENT, DeviceLevel, DeviceTrie, Trie
from catalex.errors import user_error
from catalex.models.t5 import PAD, T5, KeysValues

Precision: TypeAlias = Literal["fp32", "bf16"]
"""Number format of the matrix products. Softmax, log-probabilities and scores are float32 in both."""

DEAD = torch.iinfo(torch.int64).min
"""Key of a candidate that may not be chosen; below the key of every score."""

LOW = 2**32 - 1


@dataclass(frozen=True)
class Decoded:
    """The best items of B histories.

    Attributes:
        items: ``(B, k)`` int64 item ids, best first, `ABSENT` after the end; never twice the same in a row.
        scores: ``(B, k)`` float32 log-probabilities, non-increasing along a row; -inf where `items` is
            `ABSENT`.
    """

    items: Tensor
    scores: Tensor


@dataclass(frozen=True)
class _Beams:
    """The kept prefixes of a level, best first; each ``(B, W)``. `parent` is the beam of the level above."""

    parent: Tensor
    node: Tensor
    score: Tensor
    alive: Tensor


# no_grad, not inference_mode: the model caches tensors that a later training step must be able to use
@torch.no_grad()
def beam_search(
    model: T5,
    tokens: Tensor,
    trie: Trie,
    *,
    beam: int,
    k: int,
    allowed: Tensor | None = None,
    precision: Precision = "fp32",
) -> Decoded:
    """The `k` best items for each history.

    Exactly ``min(k, allowed items)`` are found: every kept prefix leads to an item, and k is at most `beam`.

    Args:
        model: On the device of `tokens`; dropout is off during the search.
        tokens: ``(B, T)`` int64 histories as tokens, right-padded with `PAD`.
        trie: The catalogue; all of it, also items that training never saw.
        beam: Prefixes kept at each level, at least `k`.
        k: Items wanted.
        allowed: ``(N,)`` or ``(B, N)`` bool, items that may come out (N is `trie.size`); None for all.
        precision: "bf16" is faster on hardware that has it; scores then differ by about 0.05.

    Raises:
        CatalexError: When `k` is larger than `beam`, a size is not positive, `allowed` has another shape, or
            the identifiers use tokens that the model's vocabulary lacks.
    """
    return search_index(model, tokens, trie.to(tokens.device), beam, k, allowed, precision)


@torch.no_grad()
def search_index(
    model: T5,
    tokens: Tensor,
    index: DeviceTrie,
    beam: int,
    k: int,
    allowed: Tensor | None,
    precision: Precision,
) -> Decoded:
    """`beam_search` over one state of a trie, on the device of `tokens`."""
    _check(model, index, tokens, beam, k, allowed)
    if len(tokens) == 0 or len(index.items) == 0:
        return nothing_found(len(tokens), k, tokens.device)
    training = model.training
    model.eval()
    try:
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=precision == "bf16"):
            return _search(model, tokens, index, beam, k, allowed)
    finally:
        model.train(training)


# --- the search ---------------------------------------------------------------------------------------------


def _search(
    model: T5, tokens: Tensor, index: DeviceTrie, beam: int, k: int, allowed: Tensor | None
) -> Decoded:
    memory = model.remember(tokens)
    masks = [None] * len(index.levels) if allowed is None else _node_masks(index, allowed)
    rows = torch.zeros(len(tokens), 1, dtype=torch.long, device=tokens.device)
    beams = _Beams(rows, rows, rows.float(), rows == 0)  # the root
    newest = rows + PAD
    caches: list[KeysValues] | None = None
    for depth, (level, mask) in enumerate(zip(index.levels, masks, strict=True)):
        logits, caches = model.step(newest, caches, memory)
        last = depth == len(index.levels) - 1
        width = min(beam, len(level.tokens), beams.node.shape[1] * level.fan_out)
        beams = _select(
            level, beams, logits.float().log_softmax(-1), mask, index.items if last else None, width
        )
        if not last:
            caches = [
                (_of_parents(keys, beams.parent), _of_parents(values, beams.parent))
                for keys, values in caches
            ]
            newest = level.tokens[beams.node].long()
    found = nothing_found(len(tokens), k, tokens.device)
    count = min(k, beams.node.shape[1])
    found.items[:, :count] = beams.node.where(beams.alive, ABSENT)[:, :count]
    found.scores[:, :count] = beams.score[:, :count]
    return found


def _select(
    level: DeviceLevel,
    beams: _Beams,
    log_probabilities: Tensor,
    mask: Tensor | None,
    items: Tensor | None,
    width: int,
) -> _Beams:
    """The `width` best children of the beams' nodes.

    Args:
        log_probabilities: ``(B, W, V)`` of the next token of each beam.
        mask: ``(1 or B, nodes)`` bool, nodes of this level that may be entered.
        items: At the last level, the item of each node: beams then carry items instead of nodes.
    """
    first, end = level.starts[beams.node], level.starts[beams.node + 1]
    children = first.unsqueeze(-1) + torch.arange(level.fan_out, device=first.device)  # (B, W, F)
    valid = (children < end.unsqueeze(-1)) & beams.alive.unsqueeze(-1)
    children = children.where(valid, 0)
    if mask is not None:
        valid &= mask.expand(len(children), -1).gather(1, children.flatten(1)).view_as(valid)
    scores = beams.score.unsqueeze(-1) + log_probabilities.gather(2, level.tokens[children].long())
    names = children if items is None else items[children].long()
    keys, places = _keys(scores, names).where(valid, DEAD).flatten(1).topk(width, dim=1)
    alive = keys != DEAD
    scores, names = _unpack(keys)
    return _Beams(places // level.fan_out, names.where(alive, 0), scores.where(alive, -torch.inf), alive)


def _keys(scores: Tensor, names: Tensor) -> Tensor:
    """One int64 for each float32 score and number: larger for a larger score, then for a smaller number.

    The bits of a float, read as an integer, are in the float's order once those of negative floats are
    mirrored.
    """
    bits = scores.view(torch.int32)
    return (bits.where(bits >= 0, bits ^ 0x7FFFFFFF).long() << 32) | (LOW - names)


def _unpack(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and numbers of `_keys`."""
    bits = (keys >> 32).int()
    return bits.where(bits >= 0, bits ^ 0x7FFFFFFF).view(torch.float32), LOW - (keys & LOW)


def _of_parents(cache: Tensor, parent: Tensor) -> Tensor:
    """``(B, h, W', p, d)`` of a cache ``(B, h, W, p, d)``: ``parent (B, W')`` of each new beam."""
    users, heads, beams, positions, width = cache.shape
    if beams == 1:
        return cache.expand(-1, -1, parent.shape[1], -1, -1)
    # whole rows of p x d numbers are copied, which is several times faster than gathering single numbers
    base = torch.arange(users * heads, device=cache.device).view(users, heads, 1) * beams
    rows = cache.reshape(-1, positions * width).index_select(0, (base + parent.unsqueeze(1)).flatten())
    return rows.view(users, heads, -1, positions, width)


def _node_masks(index: DeviceTrie, allowed: Tensor) -> list[Tensor | None]:
    """For each level ``(1 or B, nodes)``: whether an allowed item lies below a node.

    `counts` are running sums of allowed leaves at the borders between nodes; a node is open when the sums at
    its two borders differ. The borders of a level are some of the borders of the next.
    """
    leaves = (allowed if allowed.dim() == 2 else allowed.unsqueeze(0))[:, index.items]
    counts = torch.nn.functional.pad(leaves.cumsum(1, dtype=torch.int32), (1, 0))
    masks: list[Tensor | None] = []
    for level in reversed(index.levels):
        masks.append(counts[:, 1:] > counts[:, :-1])
        counts = counts[:, level.starts]
    return masks[::-1]


def nothing_found(users: int, k: int, device: torch.device) -> Decoded:
    """A result of which no place is filled."""
    return Decoded(
        torch.full((users, k), ABSENT, dtype=torch.long, device=device),
        torch.full((users, k), -torch.inf, device=device),
    )


def check_sizes(beam: int, k: int) -> None:
    """Refuse a `k` that is not positive, or larger than the beam (results would be missing)."""
    if k < 1:
        raise user_error("the number of items wanted must be positive", place="k", value=k)
    if beam < k:
        raise user_error(
            "the beam is narrower than the number of items wanted",
            place="beam",
            value=beam,
            allowed=f"{k} or more",
        )


def _check(model: T5, index: DeviceTrie, tokens: Tensor, beam: int, k: int, allowed: Tensor | None) -> None:
    check_sizes(beam, k)
    if tokens.dim() != 2 or tokens.shape[1] == 0:
        raise user_error(
            "histories must be (users, tokens) with at least one token",
            place="tokens",
            value=tuple(tokens.shape),
        )
    if index.highest_token >= model.vocabulary:
        raise user_error(
            "the identifiers use tokens that the model does not have",
            place="identifiers",
            value=index.highest_token,
            allowed=f"below {model.vocabulary}",
            remedy="use the tokenizer that the model was trained with",
        )
    shapes = [(index.size,), (len(tokens), index.size)]
    if allowed is not None and (allowed.dtype != torch.bool or tuple(allowed.shape) not in shapes):
        raise user_error(
            "the item mask has the wrong type or shape",
            place="allowed",
            value=f"{allowed.dtype} {tuple(allowed.shape)}",
            allowed=f"bool {shapes[0]} or {shapes[1]}",
        )
