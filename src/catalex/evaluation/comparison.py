"""Compare systems on the same users: mean and deviation over seeds, and paired tests against a reference."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from catalex.errors import user_error
from catalex.evaluation.results import Result
from catalex.evaluation.significance import bootstrap_interval, holm, paired_t_test
from catalex.types import JSON, Doubles

TESTED = ("ndcg@10", "recall@10")
"""Metrics that the tests run on."""

LEVEL = 0.01
"""Largest corrected p value called a difference (UTGRec marks p < .01)."""


def aggregate(results: Sequence[Result]) -> list[dict[str, JSON]]:
    """Mean and standard deviation over seeds, one row a domain and system, by first appearance.

    Returns:
        ``system``, ``domain``, ``seeds``, ``users`` and for each metric ``{"mean": .., "sd": ..}``; sd with n
        - 1, None with a single seed.
    """
    rows: list[dict[str, JSON]] = []
    for (domain, system), runs in _runs(results, by_domain=True).items():
        row: dict[str, JSON] = {
            "system": system,
            "domain": domain,
            "seeds": [r.seed for r in runs],
            "users": len(runs[0]),
        }
        for name in runs[0].metrics:
            means = np.array([run.values(name).mean() if len(run) else 0.0 for run in runs])
            row[name] = {
                "mean": float(means.mean()),
                "sd": float(means.std(ddof=1)) if len(runs) > 1 else None,
            }
        rows.append(row)
    return rows


def compare(
    results: Sequence[Result], reference: str, *, seed: int = 0, level: float = LEVEL
) -> list[dict[str, JSON]]:
    """Test every other system against `reference` on one domain.

    Per-user values are averaged over the seeds of a system, then compared user by user with a paired t-test;
    p values are corrected by Holm's method over the systems, separately for each metric.

    Args:
        results: Results of one domain; several seeds of a system share its name.
        reference: Name of the system that the others are held against.
        seed: Seed of the bootstrap.
        level: Largest corrected p value called a difference.

    Returns:
        One row for each system and metric: ``system``, ``reference``, ``metric``, ``mean``,
        ``reference_mean``, ``difference``, ``gain`` (relative; None when the reference is 0), ``t``, ``p``,
        ``p_holm``, ``low`` and ``high`` (95 % bootstrap interval of the difference), ``seeds_agree`` (every
        seed's mean lies on the same side of every seed of the reference) and ``verdict``: "better", "worse"
        or "no difference".

    Raises:
        CatalexError: When users, targets, split or domain differ, a seed repeats, or `reference` is absent.
    """
    _check(results)
    runs = {system: group for (_, system), group in _runs(results, by_domain=False).items()}
    if reference not in runs:
        raise user_error(
            f"no result of the reference system {reference!r}",
            allowed=list(runs),
            remedy="name one of the evaluated systems",
        )
    rows: list[dict[str, JSON]] = []
    for metric in TESTED:
        base_runs = [run.values(metric) for run in runs[reference]]
        rows_of_metric = []
        for system, group in runs.items():
            if system != reference:
                row = _row([run.values(metric) for run in group], base_runs, seed)
                rows_of_metric.append({"system": system, "reference": reference, "metric": metric, **row})
        for row, corrected in zip(rows_of_metric, holm([r["p"] for r in rows_of_metric]), strict=True):
            differs = corrected < level and row["seeds_agree"]
            row["p_holm"] = corrected
            row["verdict"] = ("better" if row["difference"] > 0 else "worse") if differs else "no difference"
        rows += rows_of_metric
    return rows


def _row(own_runs: list[Doubles], base_runs: list[Doubles], seed: int) -> dict[str, JSON]:
    """Numbers of one comparison from the per-user values of each seed."""
    own, base = np.mean(own_runs, axis=0), np.mean(base_runs, axis=0)
    test = paired_t_test(own, base)
    interval = bootstrap_interval(own - base, seed=seed)
    mean, reference_mean = float(own.mean()), float(base.mean())
    signs = {int(np.sign(a.mean() - b.mean())) for a in own_runs for b in base_runs}
    return {
        "mean": mean,
        "reference_mean": reference_mean,
        "difference": mean - reference_mean,
        "gain": mean / reference_mean - 1.0 if reference_mean else None,
        "t": test.statistic if np.isfinite(test.statistic) else None,
        "p": test.p,
        "low": interval.low,
        "high": interval.high,
        "seeds_agree": len(signs) == 1,
    }


def _runs(results: Sequence[Result], *, by_domain: bool) -> dict[tuple[str, str], list[Result]]:
    """Results by (domain, system), in order of first appearance; seeds ascending."""
    found: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        found.setdefault((result.domain if by_domain else "", result.system), []).append(result)
    for runs in found.values():
        runs.sort(key=lambda run: run.seed)
        for number, same in groupby(run.seed for run in runs):
            if len(list(same)) > 1:
                raise user_error(
                    f"system {runs[0].system!r} has two results with one seed",
                    place=runs[0].domain,
                    value=number,
                    remedy="give each run its own seed",
                )
    return found


def _check(results: Sequence[Result]) -> None:
    """All results speak of the same cases."""
    if not results:
        raise user_error("there are no results to compare", remedy="evaluate at least two systems")
    first = results[0]
    for other in results[1:]:
        pair = f"{first.system} and {other.system}"
        if other.domain != first.domain:
            raise user_error(
                f"{pair} were evaluated on different domains",
                value=[first.domain, other.domain],
                remedy="compare one domain at a time",
            )
        if other.split_id != first.split_id:
            raise user_error(
                f"{pair} were evaluated on different splits of {first.domain}",
                value=[first.split_id, other.split_id],
                remedy="train and evaluate both on one split",
            )
        if not (np.array_equal(first.users, other.users) and np.array_equal(first.targets, other.targets)):
            raise user_error(
                f"{pair} were evaluated on different users of {first.domain}",
                value=[len(first), len(other)],
                remedy="evaluate both on all test users",
            )
