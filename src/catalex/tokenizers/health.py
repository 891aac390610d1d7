"""The health report of a tokenizer: one JSON value that says, domain by domain, what its identifiers are
worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np

from catalex.data.histories import Cases, Histories
from catalex.quantize import usage as use
from catalex.tokenizers.base import CodeSpace, Tokenizer
from catalex.tokenizers.neighbours import (
    kept_by_prefix,
    kept_by_reconstruction,
    nearest_by_cosine,
    sample_queries,
)
from catalex.tokenizers.transitions import transition_likelihood
from catalex.types import JSON, Codes, Floats, Ints

BUCKETS = 5
"""Example groups of each kind."""
TITLES = 8
"""Titles shown of a group."""


@dataclass(frozen=True)
class TokenizedDomain:
    """What the report looks at.

    Attributes:
        name: Name of the domain.
        vectors: ``(N, D)`` content vectors.
        codes_before: ``(N, L)`` codes as encoded.
        codes_after: ``(N, L)`` or ``(N, L + 1)`` identifiers after conflict handling.
        titles: N titles.
        training: Training histories.
        validation: Validation cases.
    """

    name: str
    vectors: Floats
    codes_before: Codes
    codes_after: Codes
    titles: Sequence[str]
    training: Histories
    validation: Cases


def health(tokenizer: Tokenizer, domains: Sequence[TokenizedDomain], seed: int = 0) -> dict[str, JSON]:
    """Report on the identifiers of each domain and on how evenly the tokenizer serves them.

    Returns:
        ``domains``: by name the values of `domain_health`; ``balance``: min/max ratio, coefficient of
        variation and
        Jain index over the domains of utilisation, perplexity, collision rate, error and neighbours kept;
        ``sharing``: by pair of domains the Jensen-Shannon divergence of each level's usage and the share of
        identifiers that occur in the other domain too.
    """
    reports = {domain.name: domain_health(tokenizer, domain, seed) for domain in domains}
    return {
        "domains": reports,
        "balance": _balance(list(reports.values())),
        "sharing": {
            f"{a.name} | {b.name}": _sharing(tokenizer.space, a, b) for a, b in combinations(domains, 2)
        },
    }


def domain_health(tokenizer: Tokenizer, domain: TokenizedDomain, seed: int = 0) -> dict[str, JSON]:
    """Collisions by depth before and after, use of each level, error, neighbours kept, transition
    likelihood, examples.

    ``error`` is the mean squared error of `Tokenizer.decode` relative to the variance of the content vectors
    (0
    perfect, 1 as good as the mean). ``transitions.shuffled`` judges the same identifiers dealt out at
    random: what
    lies between it and ``transitions.item`` is what the identifiers know about the items.
    """
    space, before, after = tokenizer.space, domain.codes_before, domain.codes_after
    decoded = tokenizer.decode(before)
    queries = sample_queries(len(before), seed)
    truth = nearest_by_cosine(domain.vectors, queries)
    likelihood = transition_likelihood(after, domain.training, domain.validation)
    dealt = np.random.default_rng(seed).permutation(len(after))
    moved = int((before != after[:, : before.shape[1]]).any(axis=1).sum())
    return {
        "items": len(before),
        "collisions_before": _collisions(before),
        "collisions_after": _collisions(after),
        "moved": moved,
        "levels": [_level(before, level, space.sizes[level]) for level in range(space.levels)],
        "pooled": _pooled(before, space),
        "error": relative_error(domain.vectors, decoded),
        "neighbours": {
            "prefix_before": kept_by_prefix(truth, before, queries),
            "prefix": kept_by_prefix(truth, after, queries),
            "reconstruction": kept_by_reconstruction(truth, decoded, queries),
        },
        "transitions": {
            **asdict(likelihood),
            "levels": list(likelihood.levels),
            "shuffled": transition_likelihood(after[dealt], domain.training, domain.validation).item,
        },
        "examples": _examples(after, domain.titles, seed),
    }


def relative_error(vectors: Floats, decoded: Floats) -> float:
    """``sum |v - v^|^2 / sum |v - mean|^2`` over the items."""
    spread = float(np.square(vectors - vectors.mean(0), dtype=np.float64).sum())
    return float(np.square(vectors - decoded, dtype=np.float64).sum()) / max(spread, 1e-30)


def _collisions(codes: Codes) -> list[JSON]:
    """Collision numbers of the first 1, 2, .. codes; ``icr`` = distinct / items = 1 - rate."""
    found = [use.collisions(codes, depth) for depth in range(1, codes.shape[1] + 1)]
    return [{"depth": depth, **asdict(c), "icr": 1 - c.rate} for depth, c in enumerate(found, 1)]


def _level(codes: Codes, level: int, size: int) -> dict[str, JSON]:
    """Use of one level; ``usage`` is each code's share of the items, largest first, for a plot."""
    shares = use.shares(codes[:, level], size)
    return {
        "size": size,
        **asdict(use.usage(shares)),
        "conditional_entropy": use.conditional_entropy(codes, level),
        "usage": [round(float(share), 6) for share in np.sort(shares)[::-1]],
    }


def _pooled(codes: Codes, space: CodeSpace) -> dict[str, JSON]:
    """Use of every codebook that several levels share, over those levels together."""
    found: dict[str, JSON] = {}
    for group in sorted(set(space.groups)):
        levels = [level for level, owner in enumerate(space.groups) if owner == group]
        if len(levels) > 1:
            found[str(group)] = asdict(use.usage(use.shares(codes[:, levels], space.sizes[levels[0]])))
    return found


def _balance(reports: Sequence[dict[str, JSON]]) -> dict[str, JSON]:
    values = {
        "utilisation": [np.mean([level["utilisation"] for level in r["levels"]]) for r in reports],
        "perplexity": [np.mean([level["perplexity"] for level in r["levels"]]) for r in reports],
        "collision_rate": [r["collisions_before"][-1]["rate"] for r in reports],
        "error": [r["error"] for r in reports],
        "neighbours": [r["neighbours"]["prefix"] for r in reports],
    }
    return {name: asdict(use.balance(numbers)) for name, numbers in values.items()} if reports else {}


def _sharing(space: CodeSpace, one: TokenizedDomain, other: TokenizedDomain) -> dict[str, JSON]:
    columns = zip(one.codes_before.T, other.codes_before.T, space.sizes, strict=True)
    return {
        "jensen_shannon": [
            use.jensen_shannon(use.shares(a, size), use.shares(b, size)) for a, b, size in columns
        ],
        "shared_identifiers": use.shared_identifiers(one.codes_after, other.codes_after),
    }


def _examples(codes: Codes, titles: Sequence[str], seed: int) -> dict[str, JSON]:
    """Titles of the largest groups by first code, and of random groups that share all codes but the last."""
    generator = np.random.default_rng(seed)
    first = np.bincount(codes[:, 0])
    largest = [int(code) for code in np.argsort(-first, kind="stable")[:BUCKETS] if first[code]]
    groups = use.prefix_groups(codes, codes.shape[1] - 1)
    candidates = np.flatnonzero(np.bincount(groups) > 1)
    chosen = np.sort(generator.permutation(candidates)[:BUCKETS])
    return {
        "first_code": [
            _bucket([code], np.flatnonzero(codes[:, 0] == code), titles, generator) for code in largest
        ],
        "prefix": [
            _bucket(codes[rows[0], :-1].tolist(), rows, titles, generator)
            for rows in (np.flatnonzero(groups == group) for group in chosen)
        ],
    }


def _bucket(
    codes: list[int], rows: Ints, titles: Sequence[str], generator: np.random.Generator
) -> dict[str, JSON]:
    shown = np.sort(generator.permutation(rows)[:TITLES])
    return {"codes": codes, "items": len(rows), "titles": [titles[row] for row in shown]}
