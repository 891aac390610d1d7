"""One step of the beam search's choice: the best children of the beams' nodes, ties included.

Prefixes of equal score are ordered by their tokens, complete identifiers by item id. The order is total, so
the result depends neither on the batch nor on the device. It is cheap because a candidate's score and number
are packed into one integer (`_keys`) and a single top-k selects by both. A CPU first chooses by score alone,
which is faster, and looks at numbers only where two of the best are equal.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from catalex.decoding.masks import ClosedNodes, OpenNodes, shut
from catalex.decoding.trie import DeviceTrie

LOW = 2**32 - 1


@dataclass(frozen=True)
class Beams:
    """The kept prefixes of a level, best first; each ``(B, W)``.

    `parent` is the beam of the level above. At the last level `node` is an item.
    """

    parent: Tensor
    node: Tensor
    score: Tensor
    alive: Tensor


def select(
    index: DeviceTrie,
    depth: int,
    beams: Beams,
    log_probabilities: Tensor,
    width: int,
    opened: OpenNodes | None = None,
    closed: ClosedNodes | None = None,
) -> Beams:
    """The `width` best children, at level `depth`, of the beams' nodes.

    Args:
        log_probabilities: ``(B, W, V)`` of the next token of each beam.
        opened: Nodes that may be entered; all without it.
        closed: Nodes that may not.
    """
    level, last = index.levels[depth], depth == len(index.levels) - 1
    users, kept = beams.node.shape
    nodes = beams.node.flatten()
    first = level.starts.index_select(0, nodes)
    count = (level.starts.index_select(0, nodes + 1) - first).where(beams.alive.flatten(), 0)
    place = torch.arange(level.fan_out, dtype=torch.int32, device=first.device)
    dead = (place >= count.unsqueeze(1)).view(users, kept, -1)
    children = (first.unsqueeze(1) + place).clamp_(max=len(level.tokens) - 1).flatten()  # (B * W * F,)
    tokens = level.tokens.index_select(0, children).view(users, kept, -1)
    scores = log_probabilities.gather(2, tokens.long()).add_(beams.score.unsqueeze(-1))
    if opened is not None:
        dead |= opened.closed(depth, children, users).view_as(dead)
    if closed is not None:
        shut(dead, beams.node.where(beams.alive, -2), closed.parents[depth], closed.places[depth])
    scores = scores.masked_fill_(dead, -torch.inf).flatten(1)
    children = children.view(users, -1)
    if scores.device.type == "cpu":
        best, places = scores.topk(min(width + 1, scores.shape[1]), dim=1)
        if not _is_tied(best):
            best, places = best[:, :width], places[:, :width]
            names = children.gather(1, places)
            alive = best != -torch.inf
            names = index.items[names] if last else names
            return Beams(places // level.fan_out, names.where(alive, 0), best, alive)
    names = index.items[children] if last else children
    keys, places = _keys(scores, names).topk(width, dim=1)
    best, names = _unpack(keys)
    alive = best != -torch.inf
    return Beams(places // level.fan_out, names.where(alive, 0), best, alive)


def _is_tied(best: Tensor) -> bool:
    """Whether two neighbours of the sorted scores ``best (B, W + 1)`` of living candidates are equal: those
    chosen, or the last of them and the first that was not."""
    later = best[:, 1:]
    return bool(((later == best[:, :-1]) & (later > -torch.inf)).any())


def _keys(scores: Tensor, names: Tensor) -> Tensor:
    """One int64 for each float32 score and number: larger for a larger score, then for a smaller number.

    The bits of a float, read as an integer, are in the float's order once those of negative floats are
    mirrored.
    """
    bits = scores.view(torch.int32)
    return (bits.where(bits >= 0, bits ^ 0x7FFFFFFF).long() << 32) | (LOW - names.long())


def _unpack(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and numbers of `_keys`."""
    bits = (keys >> 32).int()
    return bits.where(bits >= 0, bits ^ 0x7FFFFFFF).view(torch.float32), LOW - (keys & LOW)
