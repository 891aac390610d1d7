"""Section "Data": the statistics of every domain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from catalex.reporting.blocks import Block, Cell, Section, Table, cells, flatten, not_run, words
from catalex.reporting.tables import number

MAIN = ("users", "items", "interactions", "density", "mean_history", "with_text", "with_image")
"""Facts of the first table, where they are known; all others stand in the second."""


def data(report: Mapping[str, Any]) -> Section:
    """Users, items, interactions and what else was counted."""
    domains: Mapping[str, Any] = report.get("domains") or {}
    if not domains:
        return not_run("data", "Data", "no prepared domain in this report")
    facts = {name: flatten(values) for name, values in domains.items()}
    present = [key for key in MAIN if any(key in values for values in facts.values())]
    blocks: list[Block] = []
    if present:
        rows = [cells(name, *(number(values.get(key)) for key in present)) for name, values in facts.items()]
        blocks.append(Table("Domains after preparation", ["domain", *map(words, present)], rows))
    others = dict.fromkeys(
        key for values in facts.values() for key in values if key not in present and key != "name"
    )
    if others:
        rest = [
            [Cell(words(key)), *(Cell(_short(values.get(key))) for values in facts.values())]
            for key in others
        ]
        blocks.append(
            Table("All facts of the manifests", ["fact", *facts], rest, len(facts) + 1, collapsed=True)
        )
    return Section("data", "Data", blocks)


def _short(value: object) -> str:
    """Hashes and lists, cut to what a table can hold."""
    text = ", ".join(map(number, value)) if isinstance(value, list) else number(value)
    return text if len(text) <= 60 else text[:59] + "…"
