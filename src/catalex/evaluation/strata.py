"""Long-tail strata: the same metrics by how often the target was bought in training.

Popularity counts *training* interactions of the domain only; a validation or test interaction never makes an
item popular. The groups [0, 20), [20, 40), [40, 60) and [60, inf) partition the users, so their means
weighted by group size equal the overall metric; cold targets (never seen in training) are part of [0, 20) and
also reported alone as [0, 0].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from catalex.types import JSON, Bools, Doubles, Ints

BOUNDS = (0, 20, 40, 60)
"""Lower bounds of the groups (UTGRec, long-tail analysis: names [0, 20) and [40, 60); the rest is ours)."""


@dataclass(frozen=True)
class Stratum:
    """One group of users.

    Attributes:
        name: The interval of the target's popularity, as printed.
        members: ``(B,)`` which users belong to it.
        partition: Whether the group is one of those that together hold each user once.
    """

    name: str
    members: Bools
    partition: bool


def strata(target_popularity: Ints) -> list[Stratum]:
    """The four groups, then the cold targets alone.

    Args:
        target_popularity: ``(B,)`` training interactions of each user's target.
    """
    group = np.searchsorted(np.asarray(BOUNDS), target_popularity, side="right") - 1
    names = [f"[{low}, {high})" for low, high in zip(BOUNDS, (*BOUNDS[1:], "inf"), strict=True)]
    found = [Stratum(name, group == i, True) for i, name in enumerate(names)]
    return [*found, Stratum("[0, 0]", target_popularity == 0, False)]


def stratified(values: Mapping[str, Doubles], target_popularity: Ints) -> list[dict[str, JSON]]:
    """Mean of each metric in each stratum.

    Args:
        values: Metric name to its per-user values ``(B,)``.
        target_popularity: ``(B,)`` training interactions of each user's target.

    Returns:
        One row a stratum: ``popularity`` (the interval), ``users``, ``partition``, and the means; None when
        empty.
    """
    rows: list[dict[str, JSON]] = []
    for stratum in strata(target_popularity):
        count = int(stratum.members.sum())
        row: dict[str, JSON] = {"popularity": stratum.name, "users": count, "partition": stratum.partition}
        for name, column in values.items():
            row[name] = float(column[stratum.members].mean()) if count else None
        rows.append(row)
    return rows


def relative_gain(
    rows: list[dict[str, JSON]], reference: list[dict[str, JSON]], metric: str
) -> list[float | None]:
    """Gain of `rows` over `reference` in each stratum, as a share of it; None where that is 0 or empty."""
    gains: list[float | None] = []
    for row, other in zip(rows, reference, strict=True):
        assert row["popularity"] == other["popularity"]
        base = other[metric]
        gains.append(float(row[metric] / base - 1.0) if base and row[metric] is not None else None)
    return gains
