"""Blocks of the tokenizer's section: which experts the items of each domain are sent to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from catalex.reporting.blocks import Block, Paragraph, Table, cells
from catalex.reporting.tables import number

NOTES = (
    "Entropies are in nats, at most {most} for {experts} experts. Entropy of the mean routing is high when a "
    "domain as a whole uses many experts; mean entropy of an item's routing is high when the router is "
    "undecided about single items."
)


def expert_blocks(facts: Mapping[str, Any]) -> list[Block]:
    """Share of the items on each expert, domain by domain, and what the domain tells about the expert; none
    for a tokenizer without experts."""
    rows = {name: row["experts"] for name, row in (facts.get("health") or {}).items() if row.get("experts")}
    count = max((len(row.get("shares") or ()) for row in rows.values()), default=0)
    if not count:
        return []
    header = ["domain", *(f"expert {e}" for e in range(count))]
    shares = [
        cells(name, *(number(share) for share in _filled(row.get("shares") or (), count)))
        for name, row in rows.items()
    ]
    keys = ("largest", "entropy", "routing_entropy", "item_entropy")
    names = ("largest share", "entropy of the shares", "of the mean routing", "of an item's routing, mean")
    entropies = [cells(name, *(number(row.get(key)) for key in keys)) for name, row in rows.items()]
    return [
        Table("Share of the items on each expert, before conflict handling", header, shares),
        Table("How the router spreads the items", ["domain", *names], entropies),
        Paragraph(
            " ".join([NOTES.format(most=number(math.log(count)), experts=count), *_over_domains(facts)])
        ),
    ]


def _over_domains(facts: Mapping[str, Any]) -> list[str]:
    """The mutual information between domain and expert in a sentence, where it was measured."""
    found = facts.get("experts") or {}
    if found.get("mutual_information") is None:
        return []
    told = f"Mutual information between domain and expert: {number(found['mutual_information'])} nats"
    if found.get("normalised") is not None:
        told += f", {number(found['normalised'])} of the entropy of the domain (1: no two share an expert)"
    return [told + f". Largest share of an expert over all items: {number(found.get('largest'))}."]


def _filled(shares: Any, count: int) -> list[float]:
    """A domain that was not asked about an expert that another has grown sent nothing there."""
    return [*shares, *[0.0] * (count - len(shares))]
