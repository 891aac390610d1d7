"""The parts of a report's page, free of any format; HTML and Markdown both walk over them.

Strings here are plain text: whoever writes a page escapes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True)
class Paragraph:
    """A sentence or a few."""

    kind: ClassVar[str] = "paragraph"
    text: str
    strong: bool = False


@dataclass(frozen=True)
class Points:
    """A bulleted list."""

    kind: ClassVar[str] = "points"
    points: Sequence[str]


@dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    kind: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True)
class Cell:
    """A cell of a table; the best of its column is `strong`, `mark` is set behind the text."""

    text: str
    strong: bool = False
    mark: str = ""


@dataclass(frozen=True)
class Table:
    """A table with a caption. The first `text_columns` columns are words, the others numbers."""

    kind: ClassVar[str] = "table"
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    text_columns: int = 1
    collapsed: bool = False
    """Whether a page may fold it away at first."""


@dataclass(frozen=True)
class Figure:
    """A plot; `draw` gives an SVG element and is called by formats that can show it."""

    kind: ClassVar[str] = "figure"
    name: str
    caption: str
    alternative: str
    """The message of the plot for those who cannot see it."""
    draw: Callable[[], str]


@dataclass(frozen=True)
class Code:
    """Text in a fixed width, folded away at first."""

    kind: ClassVar[str] = "code"
    caption: str
    text: str


@dataclass(frozen=True)
class Recommendation:
    """One example: a history, what came next, and what was recommended."""

    kind: ClassVar[str] = "recommendation"
    heading: str
    history: Sequence[str]
    target: str
    recommended: Sequence[str]
    rank: int
    """Place of the target from 1; 0 when it is missing."""


@dataclass(frozen=True)
class Card:
    """An item: a picture if there is one, its title, a few words below; the one asked about is `strong`."""

    title: str
    note: str = ""
    picture: str | None = None
    """A data URI; never an address."""
    strong: bool = False


@dataclass(frozen=True)
class Cards:
    """Items side by side, the first one against the others."""

    kind: ClassVar[str] = "cards"
    heading: str
    text: str
    cards: Sequence[Card]


Block = Paragraph | Points | Heading | Table | Figure | Code | Recommendation | Cards


@dataclass(frozen=True)
class Section:
    """One section; `missing` when its stage was not run."""

    anchor: str
    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)
    missing: bool = False


def cells(*texts: str) -> list[Cell]:
    """A row of plain cells."""
    return [Cell(text) for text in texts]


def not_run(anchor: str, title: str, what: str) -> Section:
    """A section whose stage was not run; `what` is the thing that is not there."""
    return Section(anchor, title, [Paragraph(f"This stage was not run: there is {what}.")], missing=True)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, inner keys named ``outer.inner``; lists of more than scalars are left out."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        elif not isinstance(value, list) or not any(isinstance(v, Mapping | list) for v in value):
            flat[f"{prefix}{key}"] = value
    return flat


def words(key: str) -> str:
    """A key as a label: ``mean_history`` -> "mean history"; metrics keep their spelling in capitals."""
    name, at, k = key.partition("@")
    labels = {"ndcg": "NDCG", "recall": "Recall", "mrr": "MRR"}
    if at:
        prefix, _, metric = name.rpartition("_")
        return f"{prefix} {labels.get(metric, metric)}@{k}".strip()
    return key.replace("_", " ")
