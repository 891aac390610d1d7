"""How well codes are used: entropy measures, collisions, and balance between domains (one definition each).

All functions take plain integer arrays and return plain numbers; logarithms are natural unless said.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Numbers = NDArray[np.float64]
Integers = NDArray[np.integer]


@dataclass(frozen=True)
class Usage:
    """Use of one codebook by the items of a domain, each item counted once.

    Attributes:
        utilisation: Share of the K codes in use.
        perplexity: ``exp(-sum p ln p)``, in [1, K].
        dead: Codes never used.
        max_share: Share of items on the most frequent code.
    """

    utilisation: float
    perplexity: float
    dead: int
    max_share: float


def shares(codes: Integers, size: int) -> Numbers:
    """``(K,)`` share of the items on each code, from codes ``(N,)``."""
    counts = np.bincount(np.asarray(codes).ravel(), minlength=size).astype(np.float64)
    total: float = max(float(counts.sum()), 1.0)
    found: Numbers = counts / total
    return found


def usage(share: ArrayLike) -> Usage:
    """Utilisation, perplexity, dead codes and largest share of a distribution ``(K,)`` over codes.

    >>> usage([0.5, 0.5, 0, 0])
    Usage(utilisation=0.5, perplexity=2.0, dead=2, max_share=0.5)
    """
    p = np.asarray(share, np.float64)
    live = int((p > 0).sum())
    return Usage(live / len(p), round(float(np.exp(entropy(p))), 12), len(p) - live, float(p.max()))


def entropy(share: ArrayLike) -> float:
    """``-sum p ln p`` in nats, with 0 ln 0 = 0."""
    p = np.asarray(share, np.float64)
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


def prefix_groups(codes: Integers, depth: int) -> NDArray[np.int64]:
    """``(N,)`` a dense number for each distinct prefix of `depth` codes, in lexicographic order of the
    prefixes."""
    groups = np.zeros(len(codes), np.int64)
    for level in range(depth):
        column = np.asarray(codes[:, level], np.int64)
        width = int(column.max()) + 1 if len(column) else 1
        groups = np.unique(groups * width + column, return_inverse=True)[1].astype(np.int64).ravel()
    return groups


def conditional_entropy(codes: Integers, level: int) -> float:
    """Entropy in nats of the code at `level` (from 0) given the codes before it; 0 means that the level adds
    nothing."""
    deeper = entropy(shares(prefix_groups(codes, level + 1), 1))
    return max(deeper - entropy(shares(prefix_groups(codes, level), 1)), 0.0)


def jensen_shannon(one: ArrayLike, other: ArrayLike) -> float:
    """Jensen-Shannon divergence in bits of two distributions over the same codes: 0 equal, 1 disjoint."""
    p, q = np.asarray(one, np.float64), np.asarray(other, np.float64)
    divergence = entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2
    return min(max(divergence / float(np.log(2)), 0.0), 1.0)


@dataclass(frozen=True)
class Collisions:
    """Collisions among n items with u distinct identifiers.

    Attributes:
        items: n.
        distinct: u.
        rate: ``(n - u) / n``.
        colliding: Share of items that share their identifier with another.
        largest: Items of the largest group.
    """

    items: int
    distinct: int
    rate: float
    colliding: float
    largest: int


def collisions(codes: Integers, depth: int | None = None) -> Collisions:
    """Collisions of identifiers ``(N, L)``, or of their first `depth` codes."""
    items = len(codes)
    if not items:
        return Collisions(0, 0, 0.0, 0.0, 0)
    sizes = np.bincount(prefix_groups(codes, codes.shape[1] if depth is None else depth))
    shared = int(sizes[sizes > 1].sum())
    return Collisions(items, len(sizes), (items - len(sizes)) / items, shared / items, int(sizes.max()))


@dataclass(frozen=True)
class Balance:
    """How evenly a quantity is spread over domains.

    Attributes:
        min_max: Smallest over largest value.
        variation: Standard deviation (over all domains, divisor K) over mean.
        jain: ``(sum v)^2 / (K sum v^2)``, in [1/K, 1].
    """

    min_max: float
    variation: float
    jain: float


def balance(values: ArrayLike) -> Balance:
    """Balance of non-negative values, one a domain; all-zero values count as perfectly balanced."""
    v = np.asarray(values, np.float64)
    if not v.any():
        return Balance(1.0, 0.0, 1.0)
    jain = float(v.sum() ** 2 / (len(v) * (v**2).sum()))
    return Balance(float(v.min() / v.max()), float(v.std() / v.mean()), jain)


def shared_identifiers(one: Integers, other: Integers) -> float:
    """Share of the distinct identifiers of the first domain that also occur in the second; both ``(N,
    L)``."""
    ours, theirs = set(map(tuple, one.tolist())), set(map(tuple, other.tolist()))
    return len(ours & theirs) / max(len(ours), 1)
