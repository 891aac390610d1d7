"""Section "Accuracy": all systems in one table a domain, tests, long-tail strata, cold items, coverage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from catalex.reporting.blocks import (
    Block,
    Cell,
    Figure,
    Heading,
    Paragraph,
    Section,
    Table,
    cells,
    not_run,
    words,
)
from catalex.reporting.plots import BarPanel, Series, bars
from catalex.reporting.sections import aggregate
from catalex.reporting.tables import number, spread

MARKS = {"better": "▲", "worse": "▼", "no difference": "="}
COLD = "[0, 0]"
"""Stratum of the targets that training never saw."""

LEGEND = (
    "Mean ± standard deviation over seeds (number of seeds); bold: the highest mean. "
    "All items are ranked, and items are counted, never identifiers."
)


def accuracy(report: Mapping[str, Any]) -> Section:
    """What the systems reached on the test part."""
    domains = aggregate.by_domain(report.get("results") or ())
    if not domains:
        return not_run("accuracy", "Accuracy", "no result in this report")
    comparisons: Sequence[Mapping[str, Any]] = report.get("comparisons") or ()
    blocks: list[Block] = [Paragraph(LEGEND)]
    for domain, runs in domains.items():
        tested = [row for row in comparisons if row.get("domain") == domain and "verdict" in row]
        blocks += [Heading(domain), _table(domain, runs, tested)]
        if tested:
            blocks += [Paragraph(_marks_legend(tested)), _tests(domain, tested)]
        blocks += [block for block in (_strata(domain, runs), _beyond(domain, runs)) if block is not None]
    drawn = _strata_figure(domains)
    if drawn is not None:
        blocks += [Heading("By popularity of the target"), drawn]
    return Section("accuracy", "Accuracy", blocks)


def _table(domain: str, runs: aggregate.Runs, tested: Sequence[Mapping[str, Any]]) -> Table:
    names = aggregate.metric_names(runs)
    ranking = {name: aggregate.means(runs, name) for name in names}
    verdicts = {(row.get("system"), row.get("metric")): str(row["verdict"]) for row in tested}
    rows = []
    for system, group in runs.items():
        row = [Cell(system)]
        for name in names:
            best = max(ranking[name].values()) if len(ranking[name]) > 1 else None
            mark = MARKS.get(verdicts.get((system, name), ""), "")
            row.append(
                Cell(
                    spread(aggregate.values(group, "metrics", name)), ranking[name].get(system) == best, mark
                )
            )
        rows.append([*row, Cell(number(group[0].get("users")))])
    return Table(f"Accuracy on {domain}, test part", ["system", *map(words, names), "users"], rows)


def _marks_legend(tested: Sequence[Mapping[str, Any]]) -> str:
    references = ", ".join(dict.fromkeys(str(row.get("reference")) for row in tested))
    return (
        f"Against {references}: ▲ significantly better, ▼ significantly worse, = no difference. Two-sided "
        "paired t-test over the same users, corrected by Holm's method; seeds must agree in sign."
    )


def _tests(domain: str, tested: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        cells(
            str(row.get("system")),
            str(row.get("reference")),
            words(str(row.get("metric"))),
            str(row["verdict"]),
            number(row.get("difference")),
            _percent(row.get("gain")),
            f"{number(row.get('low'))} to {number(row.get('high'))}",
            number(row.get("p")),
            number(row.get("p_holm")),
        )
        for row in tested
    ]
    header = [
        "system",
        "against",
        "metric",
        "verdict",
        "difference",
        "gain",
        "95 % interval",
        "p",
        "p after Holm",
    ]
    return Table(f"Paired tests on {domain}", header, rows, text_columns=4, collapsed=True)


def _percent(value: float | None) -> str:
    return number(None) if value is None else f"{value * 100:+.1f} %"


def stratum_means(runs: Sequence[Mapping[str, Any]], metric: str) -> dict[str, float]:
    """Mean of a metric over seeds in each stratum that has users."""
    found: dict[str, list[float]] = {}
    for run in runs:
        for row in run.get("strata") or ():
            if row.get(metric) is not None:
                found.setdefault(str(row.get("popularity")), []).append(float(row[metric]))
    return {name: sum(v) / len(v) for name, v in found.items()}


def _strata_names(runs: aggregate.Runs) -> dict[str, int | None]:
    """Users of each stratum, in the given order."""
    rows = [row for group in runs.values() for run in group for row in run.get("strata") or ()]
    return {str(row.get("popularity")): row.get("users") for row in rows}


def _strata(domain: str, runs: aggregate.Runs) -> Table | None:
    names, metric = _strata_names(runs), aggregate.headline_metric(runs)
    if not names or metric is None:
        return None
    rows = []
    for system, group in runs.items():
        found = stratum_means(group, metric)
        if found:
            rows.append(cells(system, *(number(found.get(name)) for name in names)))
    header = [
        "system",
        *(f"{'cold ' if name == COLD else ''}{name}: {number(n)} users" for name, n in names.items()),
    ]
    caption = (
        f"{words(metric)} on {domain} by how often the target occurs in training ({COLD}: never, cold items)"
    )
    return Table(caption, header, rows)


def _strata_figure(domains: Mapping[str, aggregate.Runs]) -> Figure | None:
    panels, told, metric = [], [], None
    for domain, runs in domains.items():
        metric = aggregate.headline_metric(runs)
        names = [name for name in _strata_names(runs) if name != COLD]
        if not names or metric is None:
            continue
        found = {system: stratum_means(group, metric) for system, group in runs.items()}
        series = [
            Series(s, list(range(len(names))), [v.get(n, 0.0) for n in names]) for s, v in found.items() if v
        ]
        panels.append(BarPanel(domain, names, series))
        best = [max(found, key=lambda s, n=name: found[s].get(n, 0.0)) for name in names]  # type: ignore[misc]
        told.append(f"{domain}: best in " + ", ".join(f"{n} {s}" for n, s in zip(names, best, strict=True)))
    if not panels or metric is None:
        return None
    caption = f"{words(metric)} by how often the target occurs in the training part of its domain."
    label = words(metric)
    return Figure(
        "strata", caption, "; ".join(told), lambda: bars(panels, label, "training interactions of the target")
    )


def _beyond(domain: str, runs: aggregate.Runs) -> Table | None:
    keys = list(dict.fromkeys(k for group in runs.values() for run in group for k in run.get("beyond") or {}))
    if not keys:
        return None
    rows = [
        cells(system, *(spread(aggregate.values(group, "beyond", key)) for key in keys))
        for system, group in runs.items()
        if any(run.get("beyond") for run in group)
    ]
    caption = (
        f"Beyond accuracy on {domain} (popularity bias > 0: recommends more popular items than users choose)"
    )
    return Table(caption, ["system", *map(words, keys)], rows, collapsed=True)
