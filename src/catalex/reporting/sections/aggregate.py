"""Results gathered over seeds, and comparisons between systems: what summary and accuracy speak of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

HEADLINE = "ndcg@10"
"""Metric that decides who leads: models are chosen by it on validation."""

METRIC_ORDER = ("recall@5", "recall@10", "ndcg@5", "ndcg@10", "mrr@10")
"""Columns in the order of the field's tables; others follow."""

Runs = dict[str, list[Mapping[str, Any]]]
"""Results of each system, one a seed."""


def by_domain(results: Iterable[Mapping[str, Any]]) -> dict[str, Runs]:
    """Results by domain and system, in order of first appearance."""
    found: dict[str, Runs] = {}
    for result in results:
        runs = found.setdefault(str(result.get("domain", "")), {})
        runs.setdefault(str(result.get("system", "")), []).append(result)
    return found


def metric_names(runs: Runs) -> list[str]:
    """Metrics that any run has: those of `METRIC_ORDER` first."""
    names = dict.fromkeys(
        name for group in runs.values() for run in group for name in run.get("metrics") or {}
    )
    return [*(n for n in METRIC_ORDER if n in names), *(n for n in names if n not in METRIC_ORDER)]


def values(runs: Iterable[Mapping[str, Any]], part: str, name: str) -> list[float]:
    """The number `name` in `part` ("metrics", "beyond") of every run that has it."""
    found = [(run.get(part) or {}).get(name) for run in runs]
    return [float(value) for value in found if value is not None]


def means(runs: Runs, metric: str) -> dict[str, float]:
    """Mean of a metric over seeds by system, best first."""
    found = {system: values(group, "metrics", metric) for system, group in runs.items()}
    averaged = {system: sum(v) / len(v) for system, v in found.items() if v}
    return dict(sorted(averaged.items(), key=lambda pair: -pair[1]))


def headline_metric(runs: Runs) -> str | None:
    """`HEADLINE`, or the last metric that was measured instead."""
    names = metric_names(runs)
    return HEADLINE if HEADLINE in names else names[-1] if names else None


def ours(report: Mapping[str, Any]) -> set[str]:
    """Systems that the run is about: as the report says, else those that predict identifiers."""
    if "ours" in report:
        return set(report["ours"])
    return {str(r.get("system")) for r in report.get("results") or () if r.get("tokenizer")}


def comparison(
    rows: Sequence[Mapping[str, Any]], domain: str, metric: str, system: str, other: str
) -> Mapping[str, Any] | None:
    """The test of `system` against `other`, its verdict turned if need be; None when not tested."""
    turned = {"better": "worse", "worse": "better"}
    for row in rows:
        if row.get("domain") != domain or row.get("metric") != metric or "verdict" not in row:
            continue
        pair, verdict = (row.get("system"), row.get("reference")), str(row["verdict"])
        if pair == (system, other):
            return row
        if pair == (other, system):
            return {**row, "verdict": turned.get(verdict, verdict)}
    return None
