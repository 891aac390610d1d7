"""What each level of the identifiers adds, and which collisions no tokenizer could avoid."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from catalex.quantize import usage as use
from catalex.tokenizers.base import CodeSpace
from catalex.types import JSON, Codes, Floats, Ints

EMPTY = 0.02
"""Share of what the codes chosen before it leave open below which a level counts as a function of them. Even
two evenly used codes settle 5 % of what tells a million items apart."""
OPEN = 0.1
"""Nats that those codes must leave open before that is a fault: where they tell the items apart already
there is nothing to add."""


def level_facts(codes: Codes, space: CodeSpace, order: Sequence[int]) -> list[JSON]:
    """Use of each level by one domain.

    ``conditional_entropy`` is given the codes written before the level, as a recommender reads them;
    ``chosen_entropy`` given the codes chosen before it (`Tokenizer.order`). ``usage`` is each code's share of
    the items, largest first, for a plot.
    """
    chosen = _chosen_entropies(codes, order)
    facts: list[JSON] = []
    for level, size in enumerate(space.sizes):
        shares = use.shares(codes[:, level], size)
        facts.append(
            {
                "size": size,
                **asdict(use.usage(shares)),
                "conditional_entropy": use.conditional_entropy(codes, level),
                "chosen_entropy": chosen[level],
                "usage": [round(float(share), 6) for share in np.sort(shares)[::-1]],
            }
        )
    return facts


def constant_levels(codes: Codes) -> list[int]:
    """Levels, counted from 1, at which all items of a domain have one code."""
    return [level + 1 for level in range(codes.shape[1]) if len(codes) and not np.ptp(codes[:, level])]


def empty_levels(
    codes: Codes, space: CodeSpace, order: Sequence[int], vectors: Floats, experts: Sequence[int] = ()
) -> list[int]:
    """Levels, counted from 1, that are (nearly) a function of the codes chosen before them although those
    leave items with different vectors together. Such a level was trained for nothing.

    Args:
        codes: ``(N, L)``.
        space: Their levels. A level of a single code cannot add anything and is not listed.
        order: Positions in the order in which codes are chosen.
        vectors: ``(N, D)``; items with identical vectors cannot be told apart and count as one.
        experts: Positions of experts' codes, which may well be the same for a whole domain. Never listed.
    """
    most = use.entropy(use.shares(same_vector_groups(vectors), 1))
    chosen = _chosen_entropies(codes, order)
    found = []
    for step, level in enumerate(order):
        before = use.entropy(use.shares(use.prefix_groups(codes[:, list(order)], step), 1))
        left = most - before
        useful = space.sizes[level] > 1 and level not in experts and left >= OPEN
        if useful and chosen[level] < EMPTY * left:
            found.append(level + 1)
    return sorted(found)


def forced_collisions(vectors: Floats) -> float:
    """Collision rate ``(n - u) / n`` of n items with u different vectors: any deterministic tokenizer
    collides that often before conflict handling, by these vectors alone."""
    groups = same_vector_groups(vectors)
    return (len(groups) - int(groups.max(initial=-1)) - 1) / max(len(groups), 1)


def same_vector_groups(vectors: Floats) -> Ints:
    """``(N,)`` a number for each item, equal for equal vectors ``(N, D)``; numbered as they first occur."""
    numbers: dict[bytes, int] = {}
    rows = np.ascontiguousarray(vectors) + np.float32(0)  # -0 becomes 0, which has other bytes
    # Digests instead of the rows themselves: a million rows would be kept twice.
    digests = (hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows)
    return np.array([numbers.setdefault(digest, len(numbers)) for digest in digests], np.int64)


def _chosen_entropies(codes: Codes, order: Sequence[int]) -> dict[int, float]:
    """By level the entropy in nats of its code given the codes chosen before."""
    turned = codes[:, list(order)]
    return {level: use.conditional_entropy(turned, step) for step, level in enumerate(order)}
