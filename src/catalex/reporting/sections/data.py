"""Section "Data": the statistics of every domain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from catalex.reporting.blocks import (
    Block,
    Cell,
    Paragraph,
    Points,
    Section,
    Table,
    cells,
    flatten,
    not_run,
    words,
)
from catalex.reporting.tables import number

MAIN = (
    "users", "items", "interactions", "mean_length", "median_length", "longest", "density", "images", "split",
)  # fmt: skip
"""Facts of the first table, where they are known; all others stand in the second."""


def data(report: Mapping[str, Any]) -> Section:
    """Users, items, interactions and what else was counted."""
    domains: Mapping[str, Any] = report.get("domains") or {}
    if not domains:
        return not_run("data", "Data", "no prepared domain in this report")
    facts = {name: _facts(values) for name, values in domains.items()}
    present = [key for key in MAIN if any(key in values for values in facts.values())]
    blocks: list[Block] = []
    if present:
        rows = [cells(name, *(_number(k, values.get(k)) for k in present)) for name, values in facts.items()]
        blocks.append(Table("Domains after preparation", ["domain", *map(words, present)], rows))
    warnings = [
        f"{name}: {text}" for name, values in domains.items() for text in values.get("warnings") or ()
    ]
    if warnings:
        blocks += [Paragraph("Warnings of the preparation:"), Points(warnings)]
    others = [key for key in dict.fromkeys(k for values in facts.values() for k in values) if key not in MAIN]
    if others:
        rest = [
            [Cell(words(key)), *(Cell(_short(values.get(key))) for values in facts.values())]
            for key in others
        ]
        caption = "All facts of the domains"
        blocks.append(Table(caption, ["fact", *facts], rest, text_columns=len(facts) + 1, collapsed=True))
    return Section("data", "Data", blocks)


def _facts(values: Mapping[str, Any]) -> dict[str, Any]:
    """Flat facts; what a manifest nests under "counts" and "split" gets the name that statistics use."""
    flat = flatten({key: value for key, value in values.items() if key not in ("name", "warnings")})
    names = {"split.kind": "split"} | {f"counts.{key}": key for key in MAIN}
    return {names.get(key, key): value for key, value in flat.items()}


def _number(key: str, value: object) -> str:
    """Densities are so small that they need more decimals than other shares."""
    return number(value, digits=6 if key == "density" else 4)


def _short(value: object) -> str:
    """Hashes and lists, cut to what a table can hold."""
    text = ", ".join(map(number, value)) if isinstance(value, list) else number(value)
    return text if len(text) <= 60 else text[:59] + "…"
