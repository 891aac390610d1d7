"""Section "Cost": time, parameters and the machine they were measured on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from catalex.reporting.blocks import Block, Cell, Paragraph, Section, Table, cells, not_run, words
from catalex.reporting.sections.summary import duration
from catalex.reporting.tables import number


def cost(report: Mapping[str, Any]) -> Section:
    """Seconds of each stage and size of each model."""
    stages, training = report.get("cost") or (), report.get("training") or ()
    if not stages and not any("seconds" in run or "parameters" in run for run in training):
        return not_run("cost", "Cost", "no timing in this report")
    blocks: list[Block] = []
    machine = (report.get("environment") or {}).get("machine")
    if machine:
        blocks.append(Paragraph(f"Measured on {machine}."))
    if stages:
        blocks.append(_stages(stages))
    if any("seconds" in run or "parameters" in run for run in training):
        rows = [
            cells(
                str(run.get("name", "")),
                number(run.get("seed")),
                number(run.get("parameters")),
                number(float(run["seconds"]), 1) if "seconds" in run else number(None),
                number(run.get("best_epoch")),
            )
            for run in training
        ]
        header = ["training run", "seed", "trainable parameters", "seconds", "best epoch"]
        blocks.append(Table("Training runs", header, rows))
    return Section("cost", "Cost", blocks)


def _stages(stages: Any) -> Table:
    """Seconds by stage, with whatever else was measured of it."""
    extra = list(dict.fromkeys(k for row in stages for k, v in row.items() if _is_scalar(v)))
    extra = [key for key in extra if key not in ("stage", "seconds")]
    rows = [
        cells(
            str(row.get("stage", "")),
            number(float(row["seconds"]), 1) if row.get("seconds") is not None else number(None),
            *(number(row.get(key)) for key in extra),
        )
        for row in stages
    ]
    total = sum(row.get("seconds") or 0 for row in stages)
    if len(rows) > 1:
        rows.append([Cell("total", True), Cell(number(float(total), 1), True), *cells(*[""] * len(extra))])
    return Table(
        f"Wall time of the stages ({duration(total)})", ["stage", "seconds", *map(words, extra)], rows
    )


def _is_scalar(value: object) -> bool:
    return not isinstance(value, list | Mapping)
