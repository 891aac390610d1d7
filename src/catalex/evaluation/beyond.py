"""Beyond accuracy: how much of the catalogue is shown, and whether the popular items crowd out the rest."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from catalex.types import JSON, Doubles, Ints


def recommendation_counts(top: Ints, items: int) -> Ints:
    """``(N,)`` how often each item stands in the lists `top` ``(B, k)``; negative entries end a list."""
    return np.bincount(top[top >= 0], minlength=items).astype(np.int64)


def coverage(counts: Ints) -> float:
    """Share of the catalogue that is recommended to anyone. `counts` ``(N,)`` of `recommendation_counts`."""
    return float((counts > 0).mean()) if len(counts) else 0.0


def gini(counts: Ints) -> float:
    """Gini coefficient of `counts` ``(N,)``: 0 when all are shown equally often, (N-1)/N when one gets all.

    ``G = sum_i (2 i - N - 1) x_i / (N sum x)`` with the counts x in ascending order and i = 1..N.
    """
    total = counts.sum()
    if total == 0:
        return 0.0
    n = len(counts)
    weights = 2.0 * np.arange(1, n + 1) - n - 1
    return float((weights * np.sort(counts)).sum() / (n * total))


def popularity_percentiles(popularity: Ints) -> Doubles:
    """``(N,)`` share of the catalogue that is less popular than each item, ties counted half, in (0, 1).

    Args:
        popularity: ``(N,)`` training interactions of each item.
    """
    ranks: Doubles = rankdata(popularity, method="average")
    return (ranks - 0.5) / max(len(popularity), 1)


def beyond_accuracy(top: Ints, targets: Ints, popularity: Ints) -> dict[str, JSON]:
    """All of the above for one system.

    Args:
        top: ``(B, k)`` recommended items, -1 after the end of a short list.
        targets: ``(B,)`` the items that users really chose.
        popularity: ``(N,)`` training interactions of each item.

    Returns:
        ``coverage``, ``gini``, the mean popularity percentile of recommendations and of targets, and their
        difference ``popularity_bias`` (positive: recommends more popular items than users choose).
    """
    counts = recommendation_counts(top, len(popularity))
    percentile = popularity_percentiles(popularity)
    shown = counts.sum()
    recommended = float((percentile * counts).sum() / shown) if shown else 0.0
    chosen = float(percentile[targets].mean()) if len(targets) else 0.0
    return {
        "coverage": coverage(counts),
        "gini": gini(counts),
        "percentile_recommended": recommended,
        "percentile_targets": chosen,
        "popularity_bias": recommended - chosen,
    }
