"""Blocks of the curves' section: how the tokenizer was trained and, where it was, fine-tuned to single
domains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from catalex.reporting.blocks import Block, Figure, Paragraph, Table, cells, words
from catalex.reporting.plots import LinePanel, Series, lines
from catalex.reporting.tables import number

ELSEWHERE = ("evaluated_at", "information_variance", "utilisation_at")
"""Curves that another section shows, or that count epochs or steps."""
LABELS = {
    "total": "total",
    "text": "text reconstruction",
    "image": "image reconstruction",
    "vector": "vector reconstruction",
    "code": "codebook loss",
    "alignment": "co-occurring alignment",
    "cooccurrence": "co-occurring reconstruction",
}
"""Losses whose names need a word more, and the order of their panels; all others follow under their own."""
COUNTS = {
    "items": "items in training sequences",
    "with_text": "all items with text",
    "with_image": "with image",
    "unreadable_images": "unreadable images",
    "steps": "steps",
    "parameters": "parameters",
    "trained_parameters": "of these trained",
}


def tokenizer_blocks(facts: Mapping[str, Any]) -> list[Block]:
    """Losses and use of the codes during training, then losses of each fine-tuning, then what was counted."""
    curves = facts.get("curves") or {}
    adapted = {
        str(name): own for name, own in (curves.get("adapted") or {}).items() if isinstance(own, Mapping)
    }
    blocks: list[Block] = []
    name = f"tokenizer {facts.get('name') or ''}".strip()
    weights = "; total is the weighted sum of the other losses" if "cooccurrence" in curves else ""
    panels = [panel for key in _keys([curves]) if (panel := _panel(key, {_label(key): curves}))]
    if panels:
        blocks.append(_figure("tokenizer-training", f"Training of the {name}{weights}.", panels))
    if used := _utilisation(curves):
        caption = f"Share of the codes in use, by level, during the training of the {name}."
        blocks.append(_figure("tokenizer-use", caption, [used]))
    tuned = [panel for key in _keys(adapted.values()) if (panel := _panel(key, adapted))]
    if tuned:
        caption = f"Fine-tuning of the {name} to {', '.join(adapted)}{weights}."
        blocks.append(_figure("tokenizer-fine-tuning", caption, tuned))
    blocks += _without_part(curves)
    counted = _counts({"training": curves, **{f"fine-tuning to {n}": own for n, own in adapted.items()}})
    return [*blocks, *([counted] if counted else [])]


def _keys(trainings: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of the curves in the order of their panels."""
    found = dict.fromkeys(key for curves in trainings for key in curves if key not in ELSEWHERE)
    return [*(key for key in LABELS if key in found), *(key for key in found if key not in LABELS)]


def _label(key: str) -> str:
    return LABELS.get(key, words(key))


def _panel(key: str, trainings: Mapping[str, Mapping[str, Any]]) -> LinePanel | None:
    """One curve of one or several trainings by label."""
    series, per_epoch = [], True
    for label, curves in trainings.items():
        y = _values(key, curves)
        if y and not (key in LABELS and not any(y)):
            series.append(Series(label, list(range(1, len(y) + 1)), y))
            # Only what is as long as the loss is known to have a value an epoch.
            per_epoch &= len(y) == len(curves.get("total") or ())
    return LinePanel(_label(key), "epoch" if per_epoch else "record", series) if series else None


def _values(key: str, curves: Mapping[str, Any]) -> list[float]:
    """The numbers of a curve; none where this is something else. A known loss may have a single epoch."""
    y = curves.get(key)
    if not isinstance(y, list) or not all(isinstance(v, int | float) for v in y):
        return []
    return [float(v) for v in y] if len(y) > 1 or key in LABELS else []


def _utilisation(curves: Mapping[str, Any]) -> LinePanel | None:
    """Share of codes in use, a line for each level."""
    rows, at = curves.get("utilisation"), curves.get("utilisation_at")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, list) and row for row in rows):
        return None
    if at is not None and len(at) != len(rows):
        return None
    x = list(range(1, len(rows) + 1)) if at is None else [int(step) for step in at]
    by_level = zip(*rows, strict=False)
    series = [Series(f"level {i}", x, [float(v) for v in y]) for i, y in enumerate(by_level, start=1)]
    return LinePanel("codes in use", "epoch" if at is None else "step", series)


def _figure(name: str, caption: str, panels: list[LinePanel]) -> Figure:
    told = []
    for panel in panels:
        ends = [(series.label, number(float(series.y[-1]))) for series in panel.series]
        alone = len(ends) == 1 and ends[0][0] == panel.title
        told.append(
            f"{panel.title} ends at "
            + (ends[0][1] if alone else ", ".join(f"{end} ({label})" for label, end in ends))
        )
    return Figure(name, caption, "; ".join(told), lambda: lines(panels))


def _without_part(curves: Mapping[str, Any]) -> list[Block]:
    """A loss that never was anything but 0 belongs to a part that this training did not have."""
    absent = [LABELS[key] for key in LABELS if (y := _values(key, curves)) and not any(y)]
    return [Paragraph(f"Not part of this training: {', '.join(absent)}.")] if absent else []


def _counts(trainings: Mapping[str, Mapping[str, Any]]) -> Table | None:
    present = [key for key in COUNTS if any(isinstance(own.get(key), int) for own in trainings.values())]
    rows = [
        cells(name, *(number(own.get(key)) for key in present))
        for name, own in trainings.items()
        if any(key in own for key in present)
    ]
    caption = "What the tokenizer was trained on"
    return Table(caption, ["training", *(COUNTS[key] for key in present)], rows) if present else None
