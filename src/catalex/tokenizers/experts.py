"""How a tokenizer with experts spreads items and domains over them.

An expert is a group of codebooks that a router picks for an item (UniTok's TokenMoE, 2511.12922). Two
failures show here: one expert takes most items, so the others' codes lie idle, and domains that are routed
at random, so an expert learns nothing of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np

from catalex.quantize.usage import entropy, shares
from catalex.tokenizers.base import CodeSpace
from catalex.types import JSON, Codes, Doubles, Floats


@runtime_checkable
class Routed(Protocol):
    """A tokenizer that sends every item to an expert; the identifier may name it."""

    @property
    def experts(self) -> int:
        """E, routed experts."""

    @property
    def expert_position(self) -> int | None:
        """Position of the expert's code in the identifier, from 0; None where it is not written."""

    def routing(self, vectors: Floats) -> Floats:
        """``(N, E)`` weights of the experts for vectors ``(N, D)``; rows are not negative and sum to 1."""


def expert_shares(codes: Codes, gates: Floats | None, routed: Routed, space: CodeSpace) -> Doubles | None:
    """``(E,)`` share of the items of a domain on each expert.

    The expert stands in the codes ``(N, L)`` in `space`; where `routed` does not write it, it is the one with
    the largest of the weights ``(N, E)`` of the domain's router. None when there is no router to ask either.
    """
    place = routed.expert_position
    if place is not None:
        return shares(codes[:, place], space.sizes[place])
    return None if gates is None else shares(gates.argmax(1), gates.shape[1])


def expert_facts(chosen: Doubles, gates: Floats | None) -> dict[str, JSON]:
    """What the routing of one domain looks like; entropies in nats, from 0 to ln E.

    Args:
        chosen: ``(E,)`` share of the items on each expert, each item counted with the expert it was given.
        gates: ``(N, E)`` weights g_i of the router, or None when there is no router to ask.

    Returns:
        ``shares``: `chosen`; ``largest``: the largest of them; ``entropy``: H(chosen);
        ``routing_entropy``: ``H(mean_i g_i)``, high when the domain as a whole uses many experts;
        ``item_entropy``: ``mean_i H(g_i)``, high when the router is undecided about single items. The first
        is never below the second; their difference is what an item tells about its expert. Null without
        `gates`.
    """
    used = gates is not None and len(gates) > 0
    rows = np.asarray(gates, np.float64) if used else None
    return {
        "shares": chosen.tolist(),
        "largest": float(chosen.max()),
        "entropy": entropy(chosen),
        "routing_entropy": None if rows is None else entropy(rows.mean(0)),
        "item_entropy": None if rows is None else entropy(rows) / len(rows),
    }


def domain_expert_facts(chosen: Mapping[str, Doubles], items: Mapping[str, int]) -> dict[str, JSON]:
    """How far the domain of an item tells its expert, over all domains.

    Args:
        chosen: By domain ``(E,)`` share of its items on each expert.
        items: By domain its items.

    Returns:
        ``shares``: the table domains x experts; ``mutual_information``: I(domain; expert) in nats, every
        item counted once; ``normalised``: the same divided by H(domain), 1 when every expert serves a single
        domain, null for a single domain; ``largest``: largest share of an expert over all items.
    """
    width = max((len(row) for row in chosen.values()), default=0)
    joint = np.zeros((len(chosen), width))
    for row, (name, share) in enumerate(chosen.items()):
        joint[row, : len(share)] = share * items[name]
    joint /= max(joint.sum(), 1.0)
    uncertainty = entropy(joint.sum(1))
    shared = mutual_information(joint)
    return {
        "shares": {name: share.tolist() for name, share in chosen.items()},
        "mutual_information": shared,
        "normalised": min(shared / uncertainty, 1.0) if uncertainty > 0 else None,
        "largest": float(joint.sum(0).max(initial=0.0)),
    }


def mutual_information(joint: Doubles) -> float:
    """``H(rows) + H(columns) - H(joint)`` in nats of a joint distribution ``(R, C)``; 0 when independent.

    >>> round(mutual_information(np.array([[0.5, 0.0], [0.0, 0.5]])), 4)
    0.6931
    """
    return max(entropy(joint.sum(1)) + entropy(joint.sum(0)) - entropy(joint.ravel()), 0.0)
