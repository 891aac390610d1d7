"""Section "Tokenizer health": are the identifiers unique, evenly used and meaningful, domain by domain?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from catalex.reporting.blocks import (
    Block,
    Cell,
    Figure,
    Paragraph,
    Section,
    Table,
    cells,
    flatten,
    not_run,
    words,
)
from catalex.reporting.plots import LinePanel, Series, lines
from catalex.reporting.sections.experts import expert_blocks
from catalex.reporting.sections.information import information_blocks
from catalex.reporting.tables import MISSING, number

KNOWN = ("floor", "neighbour_preservation", "transition_likelihood", "moved")
NOTES = (
    "Neighbour preservation is the share of nearest neighbours that survive quantization; transition "
    "likelihood is the mean log likelihood of validation transitions under a model over code prefixes: more "
    "is better. Collision rate is (n − u) / n for n items and u distinct identifiers: less is better; its "
    "floor is what items with identical content vectors force on any tokenizer."
)


def tokenizer(report: Mapping[str, Any]) -> Section:
    """Health of the tokenizer in every domain."""
    title = "Tokenizer health"
    facts: Mapping[str, Any] = report.get("tokenizer") or {}
    health: Mapping[str, Mapping[str, Any]] = facts.get("health") or {}
    if not health:
        return not_run("tokenizer", title, "no tokenizer health in this report")
    blocks: list[Block] = []
    if facts.get("name"):
        settings = ", ".join(f"{k} {number(v)}" for k, v in flatten(facts.get("options") or {}).items())
        blocks.append(Paragraph(f"Tokenizer {facts['name']}" + (f" ({settings})." if settings else ".")))
    blocks += [_overview(health), Paragraph(NOTES)]
    usage = {
        name: h["levels"]
        for name, h in health.items()
        if any(lv.get("usage") for lv in h.get("levels") or ())
    }
    if usage:
        caption = "Share of items on each code, most used code first, by level. A flat line is even use."
        blocks.append(Figure("usage", caption, _spoken(usage), lambda: lines(_usage_panels(usage))))
    blocks += [table for table in (_levels(health), _pooled(health)) if table is not None]
    blocks += _empty(health)
    blocks += [*expert_blocks(facts), *information_blocks(facts)]
    blocks += [table for table in (_collisions(health), _buckets(health)) if table is not None]
    return Section("tokenizer", title, blocks)


def _overview(health: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row a domain: the facts that decide."""
    others = dict.fromkeys(k for h in health.values() for k, v in h.items() if isinstance(v, int | float))
    keys = [*(k for k in KNOWN if k in others), *(k for k in others if k not in KNOWN)]
    rows = []
    for name, facts in health.items():
        whole = [_deepest(facts.get(key) or ()) for key in ("collisions_before", "collisions_after")]
        rates = [number(c.get("rate")) for c in whole] + [number(whole[1].get("largest"))]
        rows.append(cells(name, *rates, *(number(facts.get(key)) for key in keys)))
    header = ["domain", "collision rate before", "after", "largest group after", *map(words, keys)]
    return Table("Tokenizer health by domain", header, rows)


def _deepest(collisions: Any) -> Mapping[str, Any]:
    """The entry of whole identifiers."""
    return max(collisions, key=lambda c: c.get("depth", 0), default={})


def _levels(health: Mapping[str, Mapping[str, Any]]) -> Table | None:
    keys = ["size", "utilisation", "perplexity", "dead", "max_share", "conditional_entropy"]
    levels = [level for facts in health.values() for level in facts.get("levels") or ()]
    # For most tokenizers codes are chosen from left to right, and a second column would say the same.
    turned = any(
        lv.get("chosen_entropy", lv.get("conditional_entropy")) != lv.get("conditional_entropy")
        for lv in levels
    )
    keys += ["chosen_entropy"] if turned else []
    rows = [
        cells(name, str(number_of), *(number(level.get(key)) for key in keys))
        for name, facts in health.items()
        for number_of, level in enumerate(facts.get("levels") or (), start=1)
    ]
    header = [
        "domain",
        "level",
        "codes",
        "utilisation",
        "perplexity",
        "dead codes",
        "largest share",
        "entropy given prefix",
        *(["given the codes chosen before"] if turned else []),
    ]
    return (
        Table(
            "Use of the codes by level (entropy in nats; 0 means that the level adds nothing)", header, rows
        )
        if rows
        else None
    )


def _pooled(health: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """Codebooks that several levels share, which no single level uses up."""
    keys = ("size", "utilisation", "perplexity", "dead", "max_share")
    rows = [
        cells(
            name, ", ".join(map(str, used.get("levels") or [MISSING])), *(number(used.get(k)) for k in keys)
        )
        for name, facts in health.items()
        for used in (facts.get("pooled") or {}).values()
    ]
    caption = "Use of the codebooks that several levels share, over these levels together"
    header = ["domain", "levels", "codes", "utilisation", "perplexity", "dead codes", "largest share"]
    return Table(caption, header, rows, 2) if rows else None


def _empty(health: Mapping[str, Mapping[str, Any]]) -> list[Block]:
    """Levels that were trained for nothing, named aloud."""
    told = [
        f"{name}: level {', '.join(map(str, facts['empty_levels']))}"
        for name, facts in health.items()
        if facts.get("empty_levels")
    ]
    if not told:
        return []
    return [
        Paragraph(
            "Levels that the codes chosen before them decide, although these leave different items together: "
            + "; ".join(told)
            + ".",
            strong=True,
        )
    ]


def _collisions(health: Mapping[str, Mapping[str, Any]]) -> Table | None:
    rows = []
    for name, facts in health.items():
        before = {c.get("depth"): c for c in facts.get("collisions_before") or ()}
        after = {c.get("depth"): c for c in facts.get("collisions_after") or ()}
        for depth in dict.fromkeys([*before, *after]):
            row = [name, str(depth)]
            for key in ("distinct", "rate", "colliding", "largest"):
                row += [number(c.get(depth, {}).get(key)) for c in (before, after)]
            rows.append(cells(*row))
    sides = [
        f"{what} {side}"
        for what in ("distinct", "rate", "items colliding", "largest group")
        for side in ("before", "after")
    ]
    caption = "Collisions of the first codes, by depth, before and after conflict handling"
    return Table(caption, ["domain", "depth", *sides], rows, collapsed=True) if rows else None


def _buckets(health: Mapping[str, Mapping[str, Any]]) -> Table | None:
    rows = [
        [
            Cell(name),
            Cell(" ".join(map(str, bucket.get("codes") or ()))),
            Cell(" · ".join(map(str, bucket.get("titles") or ()))),
        ]
        for name, facts in health.items()
        for bucket in facts.get("buckets") or ()
    ]
    return (
        Table("Items that share their first codes", ["domain", "codes", "titles"], rows, 3, collapsed=True)
        if rows
        else None
    )


def _usage_panels(usage: Mapping[str, Any]) -> list[LinePanel]:
    depth = max(len(levels) for levels in usage.values())
    panels = []
    for level in range(depth):
        found = []
        for name, levels in usage.items():
            shares = sorted(levels[level].get("usage") or (), reverse=True) if level < len(levels) else []
            if shares:
                total = sum(shares) or 1
                found.append(Series(name, list(range(1, len(shares) + 1)), [s / total for s in shares]))
        panels.append(LinePanel(f"level {level + 1}", "code, most used first", found, log=True))
    return [panel for panel in panels if panel.series]


def _spoken(usage: Mapping[str, Any]) -> str:
    told = []
    for name, levels in usage.items():
        used = [
            f"{sum(s > 0 for s in lv.get('usage') or ())} of {len(lv.get('usage') or ())}" for lv in levels
        ]
        told.append(f"{name} uses {', '.join(used)} codes")
    return "; ".join(told)
