"""Section "Items with the same prefix": are items alike whose identifiers begin alike?"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from catalex.reporting.blocks import Block, Card, Cards, Heading, Paragraph, Section, not_run
from catalex.reporting.tables import number, shortened
from catalex.reporting.thumbnails import URI

LONGEST = 80
"""Characters of a title below a picture."""
NOTES = (
    "For some random items, the items of the same domain whose identifiers begin with the same codes. Those "
    "that share most codes come first; among equals, which the identifiers do not tell apart, random ones "
    "are shown. A recommender that learned something about the first item will offer the others beside it."
)
_JPEG = re.compile(re.escape(URI) + r"[A-Za-z0-9+/]+=*")


def prefixes(report: Mapping[str, Any]) -> Section:
    """A few items of each domain with their nearest items by identifier, with pictures if there are any."""
    title = "Items with the same prefix"
    domains: Mapping[str, Mapping[str, Any]] = report.get("prefixes") or {}
    shown = {name: facts for name, facts in domains.items() if facts.get("queries")}
    if not shown:
        return not_run("prefixes", title, "no identifier in this report")
    blocks: list[Block] = [Paragraph(NOTES)]
    for name, facts in shown.items():
        blocks += [Heading(name), *(_query(query) for query in facts["queries"])]
        missing = _missing(facts)
        blocks += [Paragraph(missing)] if missing else []
    return Section("prefixes", title, blocks)


def _query(query: Mapping[str, Any]) -> Cards:
    own = Card(shortened(query.get("title", ""), LONGEST), "", _picture(query), strong=True)
    cards = [
        Card(shortened(item.get("title", ""), LONGEST), _codes(item.get("depth")), _picture(item))
        for item in query.get("items") or ()
    ]
    identifier = " · ".join(map(str, query.get("codes") or ()))
    return Cards(f"Identifier {identifier}", _sharing(query.get("sharing") or ()), [own, *cards])


def _sharing(sharing: Sequence[int]) -> str:
    """How many others share the first codes, from the longest prefix that anybody shares on."""
    told = [
        f"{number(others)} other item{'s' if others != 1 else ''} share{'s' if others == 1 else ''} "
        f"its first {_codes(depth) if depth > 1 else 'code'}"
        for depth, others in reversed(list(enumerate(sharing, start=1)))
        if others
    ]
    return ", ".join(told) + "." if told else "No other item shares its first code."


def _codes(depth: Any) -> str:
    """A number of codes."""
    return "" if depth is None else f"{depth} code{'' if depth == 1 else 's'}"


def _picture(item: Mapping[str, Any]) -> str | None:
    """Only what this package makes is shown: a JPEG inside the page, never an address."""
    picture = item.get("picture")
    return picture if isinstance(picture, str) and _JPEG.fullmatch(picture) else None


def _missing(facts: Mapping[str, Any]) -> str:
    reasons = {"unreadable": "could not be read", "left_out": "would have made this page too large"}
    told = [f"{number(facts[key])} {why}" for key, why in reasons.items() if facts.get(key)]
    return f"Pictures that are missing here: {', '.join(told)}." if told else ""
