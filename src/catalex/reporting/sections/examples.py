"""Section "Examples": histories, what was recommended after them, and what came."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from catalex.reporting.blocks import Block, Paragraph, Recommendation, Section, not_run
from catalex.reporting.tables import shortened

LONGEST = 110
"""Characters of a title that are shown; catalogues have titles that fill a page."""

MOST = 24
"""Examples that are shown; the JSON holds all."""


def examples(report: Mapping[str, Any]) -> Section:
    """A few users, with hits marked."""
    given = list(report.get("examples") or ())
    if not given:
        return not_run("examples", "Examples", "no example of a recommendation in this report")
    shown = given[:MOST]
    hits = sum(place_of_target(example) > 0 for example in shown)
    blocks: list[Block] = [
        Paragraph(f"{hits} of these {len(shown)} lists hold the item that the user chose next; it is marked.")
    ]
    for number, example in enumerate(shown, start=1):
        origin = ", ".join(str(example[key]) for key in ("domain", "system") if example.get(key))
        blocks.append(
            Recommendation(
                f"Example {number}" + (f": {origin}" if origin else ""),
                [shortened(title, LONGEST) for title in example.get("history") or ()],
                shortened(example.get("target", ""), LONGEST),
                [shortened(title, LONGEST) for title in example.get("recommended") or ()],
                place_of_target(example),
            )
        )
    return Section("examples", "Examples", blocks)


def place_of_target(example: Mapping[str, Any]) -> int:
    """1-based place of the target in the list, 0 when it is missing."""
    recommended = list(example.get("recommended") or ())
    if example.get("rank") is not None:
        rank = int(example["rank"])
        return rank if 0 < rank <= len(recommended) else 0
    target = example.get("target")
    return recommended.index(target) + 1 if target in recommended else 0
