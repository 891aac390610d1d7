"""Blocks of the tokenizer's section: what the latent vectors keep of the content, in each domain and over the
training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from catalex.reporting.blocks import Block, Figure, Paragraph, Table, cells
from catalex.reporting.plots import LinePanel, Series, lines
from catalex.reporting.tables import number

DIGITS = 6
"""HSIC at 512 items is a few thousandths."""
VARIANCE = "variance over domains"
NOTES = (
    "HSIC and its normalised form CKA measure how much the latent vectors of a domain depend on its content "
    "vectors, with the median distance as bandwidth. They depend on the number of items, so all domains are "
    "measured at the same number, where they have as many. HSIC also depends on how the distances between "
    "latent vectors are spread: compare tokenizers by CKA."
)


def information_blocks(facts: Mapping[str, Any]) -> list[Block]:
    """The measure by domain, its spread over domains, and its course over the training, as far as known."""
    blocks: list[Block] = []
    health = facts.get("health") or {}
    rows = {name: row["information"] for name, row in health.items() if row.get("information")}
    if rows:
        caption = "Information that the latent vectors keep (I_k)"
        found = [
            cells(name, number(row.get("hsic"), DIGITS), number(row.get("cka")), number(row.get("items")))
            for name, row in rows.items()
        ]
        blocks.append(Table(caption, ["domain", "HSIC", "CKA", "items measured"], found))
        spread = _spread(facts.get("information") or {})
        blocks += [*([spread] if spread else []), Paragraph(NOTES)]
    curve = _curve(facts.get("curves") or {})
    return [*blocks, *([curve] if curve else [])]


def _spread(found: Mapping[str, Any]) -> Table | None:
    keys = ("variance", "min_max", "jain")
    rows = [
        cells(label, number(found[name].get("mean"), DIGITS), *(number(found[name].get(key)) for key in keys))
        for name, label in (("hsic", "HSIC"), ("cka", "CKA"))
        if found.get(name)
    ]
    header = ["measure", "mean", "variance", "smallest / largest", "Jain index"]
    return Table("Information over the domains", header, rows) if rows else None


def _curve(curves: Mapping[str, Any]) -> Figure | None:
    """I_k of each domain and their variance, at the epochs at which the training measured them."""
    by_domain, variance = curves.get("information") or {}, curves.get("information_variance") or []
    if not isinstance(by_domain, Mapping):
        return None
    series = [_series(str(name), values, curves) for name, values in by_domain.items()]
    panels = [
        LinePanel("information by domain", "epoch", [s for s in series if s.x]),
        LinePanel(VARIANCE, "epoch", [_series("variance", variance, curves)]),
    ]
    panels = [panel for panel in panels if any(s.x for s in panel.series)]
    if not panels:
        return None
    told = [
        f"{s.label} goes from {number(s.y[0], digits)} to {number(s.y[-1], digits)}"
        for panel in panels
        for s in panel.series
        for digits in [4 if panel.title == VARIANCE else DIGITS]  # a small variance as a power of ten
    ]
    caption = "Information that the latent vectors of each training domain keep, during the training."
    return Figure("information", caption, "; ".join(told), lambda: lines(panels))


def _series(label: str, values: Sequence[Any], curves: Mapping[str, Any]) -> Series:
    """Points where there is a value: a domain with very few items has none."""
    epochs = curves.get("evaluated_at") or range(1, len(values) + 1)
    points = [(x, float(y)) for x, y in zip(epochs, values, strict=False) if y is not None]
    return Series(label, [x for x, _ in points], [y for _, y in points])
