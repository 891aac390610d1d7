"""Beam search over a trie: the best items of a catalogue for a batch of histories, exactly.

An item's score is the log-probability of its L code tokens under the softmax over the *whole* vocabulary,
summed; the trie only chooses among continuations (masking before the softmax would favour thin branches). The
end token is not scored. ``beam_search`` keeps the `beam` best prefixes of each level; with a beam as large as
the catalogue that is the exhaustive ranking.

Where the time goes, and what is done about it: a history is encoded once and its cross-attention keys and
values are shared by all its beams; the first step has one row a user (`forward`). On a CPU, users of similar
length are searched together, few at a time, so that what one product writes is still in the cache when the
next one reads it and short histories pay for no padding. On other devices no step waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from numpy.typing import NDArray
from torch import Tensor

from catalex.decoding.forward import Past, encode, step
from catalex.decoding.masks import OpenNodes, closed_nodes, exclusions, few_excluded, open_nodes
from catalex.decoding.memory import borrowed
from catalex.decoding.selection import Beams, select
from catalex.decoding.trie import ABSENT, DeviceTrie, Trie
from catalex.decoding.weights import Weights, weights_of
from catalex.errors import user_error
from catalex.models.t5 import PAD, T5

Excluded: TypeAlias = Tensor | Sequence[NDArray[Any] | Sequence[int]]
"""Items that may not come out: for each history a sequence of ids, or ``(U, E)`` integers filled with -1."""

Precision: TypeAlias = Literal["fp32", "bf16"]
"""Number format of the matrix products. Softmax, log-probabilities and scores are float32 in both."""

ROWS = 800
"""Tokens or beams that a CPU works on at a time: what is computed of so many rows stays in a core's cache."""


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


@torch.no_grad()
def beam_search(
    model: T5,
    tokens: Tensor,
    trie: Trie,
    *,
    beam: int,
    k: int,
    allowed: Tensor | OpenNodes | None = None,
    exclude: Excluded | None = None,
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
        allowed: ``(N,)`` or ``(B, N)`` bool, items that may come out (N is `trie.size`); None for all. A mask
            costs a pass over the catalogue; what `masks.open_nodes` makes of it can be given again and again.
        exclude: For each history the ids of items that may not come out, as sequences or as ``(B, E)``
            integers filled with `ABSENT`. Costs what its length asks, whatever N is. Ids that no item has
            exclude nothing.
        precision: "bf16" is faster on hardware that has it; scores then differ by about 0.05.

    Raises:
        CatalexError: When `k` is larger than `beam`, a size is not positive, `allowed` or `exclude` has
            another shape, or the identifiers use tokens that the model's vocabulary lacks.
    """
    return search_index(model, tokens, trie.to(tokens.device), beam, k, allowed, exclude, precision)


@torch.no_grad()
def search_index(
    model: T5,
    tokens: Tensor,
    index: DeviceTrie,
    beam: int,
    k: int,
    allowed: Tensor | OpenNodes | None,
    exclude: Excluded | None,
    precision: Precision,
) -> Decoded:
    """`beam_search` over one state of a trie, on the device of `tokens`."""
    _check(model, index, tokens, beam, k, allowed)
    excluded = None if exclude is None else exclusions(exclude, len(tokens), tokens.device)
    found = nothing_found(len(tokens), k, tokens.device)
    if len(tokens) == 0 or len(index.items) == 0:
        return found
    opened = allowed if isinstance(allowed, OpenNodes) else None
    if isinstance(allowed, Tensor):
        few = few_excluded(allowed) if allowed.device.type == "cpu" else None
        if few is None:
            opened = open_nodes(index, allowed)
        else:
            few = few.expand(len(tokens), -1)
            excluded = few if excluded is None else torch.cat([excluded, few], dim=1)
    weights = weights_of(model, torch.bfloat16 if precision == "bf16" else torch.float32)
    with torch.autocast(tokens.device.type, enabled=False):
        if tokens.device.type != "cpu":
            return _search(weights, tokens, index, beam, k, opened, excluded)
        lengths = tokens.shape[1] - (tokens.flip(1) != PAD).int().argmax(1)
        order = lengths.argsort(stable=True)
        for users, length in _bites(order, lengths, beam):
            part = _search(
                weights,
                tokens[users, :length],
                index,
                beam,
                k,
                None if opened is None else opened.take(users),
                None if excluded is None else excluded[users],
            )
            found.items[users], found.scores[users] = part.items, part.scores
    return found


def _bites(order: Tensor, lengths: Tensor, beam: int) -> list[tuple[Tensor, int]]:
    """Users of similar length, as many as `ROWS` allows, and the longest length among them."""
    bites, begin, sizes = [], 0, lengths[order].tolist()
    while begin < len(order):
        end = begin + 1
        while end < len(order) and (end + 1 - begin) * max(beam, sizes[end]) <= ROWS:
            end += 1
        bites.append((order[begin:end], sizes[end - 1]))
        begin = end
    return bites


def _search(
    weights: Weights,
    tokens: Tensor,
    index: DeviceTrie,
    beam: int,
    k: int,
    opened: OpenNodes | None,
    excluded: Tensor | None,
) -> Decoded:
    with borrowed() as memory, torch.inference_mode():
        encoded = encode(weights, tokens, memory)
        closed = None if excluded is None else closed_nodes(index, excluded, opened)
        users = torch.arange(len(tokens), device=tokens.device).unsqueeze(1)
        root = torch.zeros_like(users)
        beams = Beams(root, root, root.float(), root == 0)
        newest, past = root + PAD, Past([], [], memory)
        for depth, level in enumerate(index.levels):
            log_probabilities = step(weights, newest, past, encoded).log_softmax(-1)
            kept = beams.node.shape[1]
            width = min(beam, len(level.tokens), kept * level.fan_out)
            beams = select(index, depth, beams, log_probabilities, width, opened, closed)
            if depth < len(index.levels) - 1:
                past.follow((beams.parent + users * kept).flatten())
                newest = level.tokens.index_select(0, beams.node.flatten()).long().view(beams.node.shape)
        found = nothing_found(len(tokens), k, tokens.device)
        count = min(k, beams.node.shape[1])
        found.items[:, :count] = beams.node.where(beams.alive, ABSENT)[:, :count]
        found.scores[:, :count] = beams.score[:, :count]
        return found


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


def _check(
    model: T5, index: DeviceTrie, tokens: Tensor, beam: int, k: int, allowed: Tensor | OpenNodes | None
) -> None:
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
    if isinstance(allowed, OpenNodes):
        if allowed.index is not index or len(allowed.counts) not in (1, len(tokens)):
            raise user_error(
                "the prepared item mask is of another state of the catalogue or number of histories",
                place="allowed",
                remedy="prepare it again with masks.open_nodes",
            )
        return
    shapes = [(index.size,), (len(tokens), index.size)]
    if allowed is not None and (allowed.dtype != torch.bool or tuple(allowed.shape) not in shapes):
        raise user_error(
            "the item mask has the wrong type or shape",
            place="allowed",
            value=f"{allowed.dtype} {tuple(allowed.shape)}",
            allowed=f"bool {shapes[0]} or {shapes[1]}",
        )
