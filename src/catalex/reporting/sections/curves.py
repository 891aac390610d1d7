"""Section "Curves": what training did, epoch by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from catalex.reporting.blocks import Block, Figure, Section, not_run, words
from catalex.reporting.plots import LinePanel, Series, lines
from catalex.reporting.sections.tokenizer_curves import tokenizer_blocks
from catalex.reporting.tables import number

SHOWN = ("loss", "valid_ndcg@10")
"""Curves of a recommender that get a panel of their own."""


def curves(report: Mapping[str, Any]) -> Section:
    """Training loss and validation NDCG@10 of the recommenders, then the curves of the tokenizer."""
    title = "Training curves"
    blocks: list[Block] = []
    training = [run for run in report.get("training") or () if run.get("curves")]
    panels = [panel for panel in (_recommenders(training, name) for name in SHOWN) if panel.series]
    if panels:
        told = [_spoken(run) for run in training]
        caption = "Loss on training examples and NDCG@10 on validation, by epoch."
        blocks.append(Figure("training", caption, "; ".join(told), lambda: lines(panels)))
    blocks += tokenizer_blocks(report.get("tokenizer") or {})
    return (
        Section("curves", title, blocks)
        if blocks
        else not_run("curves", title, "no training curve in this report")
    )


def _recommenders(training: Sequence[Mapping[str, Any]], name: str) -> LinePanel:
    found = []
    for run in training:
        y = run["curves"].get(name) or ()
        x = run["curves"].get("epoch") or range(1, len(y) + 1)
        points = [(a, b) for a, b in zip(x, y, strict=False) if b is not None]
        if points:
            label = f"{run.get('name', '')}, seed {run.get('seed', 0)}"
            found.append(Series(label, [a for a, _ in points], [b for _, b in points]))
    return LinePanel(words(name), "epoch", found)


def _spoken(run: Mapping[str, Any]) -> str:
    """The outcome of one run in words."""
    found = [v for v in run["curves"].get("valid_ndcg@10") or () if v is not None]
    best = f"best validation NDCG@10 {number(float(max(found)))}" if found else "no validation"
    return f"{run.get('name', '')}, seed {run.get('seed', 0)}: {best}"
