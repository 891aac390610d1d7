"""The health report of a tokenizer: one JSON value that says, domain by domain, what its identifiers are
worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np

from catalex.data.histories import Cases, Histories
from catalex.quantize import usage as use
from catalex.quantize.dependence import SIZE
from catalex.tokenizers.base import CodeSpace, LatentTokenizer, Tokenizer
from catalex.tokenizers.experts import Routed, domain_expert_facts, expert_facts, expert_shares
from catalex.tokenizers.information import common_size, information, spread
from catalex.tokenizers.levels import constant_levels, empty_levels, forced_collisions, level_facts
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
        tokenizer: The tokenizer of this domain alone, when the common one was adapted to it; None asks the
            common one.
        read: ``(N, D')`` rows that the tokenizer quantized, where its own encoder made them from the content;
            None where they are `vectors`.
    """

    name: str
    vectors: Floats
    codes_before: Codes
    codes_after: Codes
    titles: Sequence[str]
    training: Histories
    validation: Cases
    tokenizer: Tokenizer | None = None
    read: Floats | None = None

    @property
    def quantized(self) -> Floats:
        """What the codes stand for."""
        return self.vectors if self.read is None else self.read


def health(
    tokenizer: Tokenizer | None,
    domains: Sequence[TokenizedDomain],
    seed: int = 0,
    *,
    space: CodeSpace | None = None,
) -> dict[str, JSON]:
    """Report on the identifiers of each domain and on how evenly the tokenizer serves them.

    Args:
        tokenizer: The common tokenizer; None for identifiers that somebody else published. What only a
            tokenizer can tell (error, neighbours by reconstruction, information) is then null.
        domains: What to look at.
        seed: Fixes the items sampled and shown.
        space: The levels of ``codes_before``; needed without a tokenizer. Codes that a domain's own tokenizer
            has beyond the common ones (a new expert) are counted too.

    Returns:
        ``domains``: by name the values of `domain_health`; ``balance``: min/max ratio, coefficient of
        variation and Jain index over the domains of utilisation, perplexity, collision rate, error and
        neighbours kept, null where a domain has no such value; ``sharing``: by pair of domains the
        Jensen-Shannon divergence of each level's usage and the share of identifiers that occur in the other
        domain too; ``information``: see `information.spread`, null without latent vectors; ``experts``: see
        `experts.domain_expert_facts`, over the domains whose experts are known, null for a tokenizer without
        experts.

    Raises:
        ValueError: When there is neither a tokenizer nor a `space`.
    """
    levels = _space(tokenizer, space, [domain.tokenizer for domain in domains])
    size = common_size([len(domain.vectors) for domain in domains])
    reports = {
        domain.name: domain_health(tokenizer, domain, seed, space=levels, size=size) for domain in domains
    }
    measured = {name: row["information"] for name, row in reports.items() if row["information"]}
    items = {domain.name: len(domain.codes_before) for domain in domains}
    chosen = {name: np.array(row["experts"]["shares"]) for name, row in reports.items() if row["experts"]}
    return {
        "domains": reports,
        "balance": _balance(list(reports.values())),
        "sharing": {f"{a.name} | {b.name}": _sharing(levels, a, b) for a, b in combinations(domains, 2)},
        "information": spread(measured) if measured else None,
        "experts": domain_expert_facts(chosen, items) if isinstance(tokenizer, Routed) else None,
    }


def domain_health(
    tokenizer: Tokenizer | None,
    domain: TokenizedDomain,
    seed: int = 0,
    *,
    space: CodeSpace | None = None,
    size: int = SIZE,
) -> dict[str, JSON]:
    """Collisions by depth before and after, use of each level, error, neighbours kept, transition
    likelihood, information, experts, examples.

    ``floor`` is the collision rate that items with identical vectors force on any tokenizer.
    ``empty_levels`` and ``constant_levels`` count levels from 1; only the former are faults.
    ``error`` is the mean squared error of `Tokenizer.decode` relative to the variance of the content vectors
    (0 perfect, 1 as good as the mean). ``neighbours.prefix`` compares identifiers from the code that is
    written first on, ``prefix_chosen`` from the one that is chosen first on. ``transitions.shuffled`` judges
    the same identifiers dealt out at random: what lies between it and ``transitions.item`` is what the
    identifiers know about the items. ``information`` is measured at n = `size` items.
    """
    space = _space(tokenizer, space, [domain.tokenizer])
    before, after = domain.codes_before, domain.codes_after
    judge = domain.tokenizer or tokenizer
    order = tuple(range(space.levels)) if tokenizer is None else tokenizer.order
    routed = tokenizer if isinstance(tokenizer, Routed) else None
    decoded = None if judge is None else judge.decode(before)
    queries = sample_queries(len(before), seed)
    truth = nearest_by_cosine(domain.vectors, queries)
    likelihood = transition_likelihood(after, domain.training, domain.validation)
    dealt = np.random.default_rng(seed).permutation(len(after))
    kept = kept_by_prefix(truth, after, queries)
    natural = order == tuple(range(len(order)))
    moved = int((before != after[:, : before.shape[1]]).any(axis=1).sum())
    return {
        "items": len(before),
        "floor": forced_collisions(domain.vectors),
        "collisions_before": _collisions(before),
        "collisions_after": _collisions(after),
        "moved": moved,
        "levels": level_facts(before, space, order),
        "empty_levels": empty_levels(before, space, order, domain.vectors, _expert_levels(routed, space)),
        "constant_levels": constant_levels(before),
        "pooled": _pooled(before, space),
        "error": None if decoded is None else relative_error(domain.quantized, decoded),
        "neighbours": {
            "prefix_before": kept_by_prefix(truth, before, queries),
            "prefix": kept,
            "prefix_chosen": kept if natural else kept_by_prefix(truth, _as_chosen(after, order), queries),
            "reconstruction": None if decoded is None else kept_by_reconstruction(truth, decoded, queries),
        },
        "transitions": {
            **asdict(likelihood),
            "levels": list(likelihood.levels),
            "shuffled": transition_likelihood(after[dealt], domain.training, domain.validation).item,
        },
        "information": information(judge, domain.vectors, size, seed)
        if isinstance(judge, LatentTokenizer)
        else None,
        "experts": _experts(routed, judge, domain, space) if routed else None,
        "examples": _examples(after, domain.titles, seed),
    }


def _space(
    tokenizer: Tokenizer | None, space: CodeSpace | None, own: Sequence[Tokenizer | None]
) -> CodeSpace:
    """The levels of the codes: as given or the tokenizer's, with room for what single domains have beside."""
    if space is None:
        if tokenizer is None:
            raise ValueError("identifiers without a tokenizer need their code space")
        space = tokenizer.space
    spaces = [space, *(adapted.space for adapted in own if adapted is not None)]
    return CodeSpace(tuple(map(max, *(s.sizes for s in spaces), (0,) * space.levels)), space.groups)


def _expert_levels(routed: Routed | None, space: CodeSpace) -> tuple[int, ...]:
    """Positions of experts' codes: the named one and those that share its range of tokens (top-N routing)."""
    if routed is None or routed.expert_position is None:
        return ()
    owner = space.groups[routed.expert_position]
    return tuple(level for level, group in enumerate(space.groups) if group == owner)


def _experts(
    routed: Routed, judge: Tokenizer | None, domain: TokenizedDomain, space: CodeSpace
) -> dict[str, JSON] | None:
    """None for an adapted domain whose identifiers name no expert: its codebooks are those of no expert."""
    gates = judge.routing(domain.vectors) if isinstance(judge, Routed) else None
    chosen = expert_shares(domain.codes_before, gates, routed, space)
    return None if chosen is None else expert_facts(chosen, gates)


def _as_chosen(codes: Codes, order: Sequence[int]) -> Codes:
    """Codes ``(N, L)`` in the order of choice; what conflict handling appended stays behind."""
    return codes[:, [*order, *range(len(order), codes.shape[1])]]


def relative_error(vectors: Floats, decoded: Floats) -> float:
    """``sum |v - v^|^2 / sum |v - mean|^2`` over the items."""
    spread = float(np.square(vectors - vectors.mean(0), dtype=np.float64).sum())
    return float(np.square(vectors - decoded, dtype=np.float64).sum()) / max(spread, 1e-30)


def _collisions(codes: Codes) -> list[JSON]:
    """Collision numbers of the first 1, 2, .. codes; ``icr`` = distinct / items = 1 - rate."""
    found = [use.collisions(codes, depth) for depth in range(1, codes.shape[1] + 1)]
    return [{"depth": depth, **asdict(c), "icr": 1 - c.rate} for depth, c in enumerate(found, 1)]


def _pooled(codes: Codes, space: CodeSpace) -> dict[str, JSON]:
    """Use of every codebook that several levels share, over those levels (from 1) together."""
    found: dict[str, JSON] = {}
    for group in sorted(set(space.groups)):
        levels = [level for level, owner in enumerate(space.groups) if owner == group]
        if len(levels) > 1:
            size = space.sizes[levels[0]]
            used = asdict(use.usage(use.shares(codes[:, levels], size)))
            found[str(group)] = {"levels": [level + 1 for level in levels], "size": size, **used}
    return found


def _balance(reports: Sequence[dict[str, JSON]]) -> dict[str, JSON]:
    values = {
        "utilisation": [np.mean([level["utilisation"] for level in r["levels"]]) for r in reports],
        "perplexity": [np.mean([level["perplexity"] for level in r["levels"]]) for r in reports],
        "collision_rate": [r["collisions_before"][-1]["rate"] for r in reports],
        "error": [r["error"] for r in reports],
        "neighbours": [r["neighbours"]["prefix"] for r in reports],
    }
    return (
        {name: None if None in numbers else asdict(use.balance(numbers)) for name, numbers in values.items()}
        if reports
        else {}
    )


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
