"""Metrics: pure functions from ranks ``(B,)`` to values of users ``(B,)``; their mean is the metric."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from catalex.evaluation.metrics.expected import Place, expected_ndcg_at, expected_recall_at, place_of_target
from catalex.evaluation.metrics.mrr import mrr_at
from catalex.evaluation.metrics.ndcg import ndcg_at
from catalex.evaluation.metrics.recall import recall_at
from catalex.types import Doubles, Ints

METRICS: Mapping[str, Callable[[Ints, int], Doubles]] = MappingProxyType(
    {"recall": recall_at, "ndcg": ndcg_at, "mrr": mrr_at}
)
"""Name of a metric, as in ``recall@10``, to its function."""


def measure(name: str, ranks: Ints) -> Doubles:
    """Per-user values ``(B,)`` of a metric written as ``ndcg@10``."""
    metric, _, k = name.partition("@")
    return METRICS[metric](ranks, int(k))


__all__ = [
    "METRICS",
    "Place",
    "expected_ndcg_at",
    "expected_recall_at",
    "measure",
    "mrr_at",
    "ndcg_at",
    "place_of_target",
    "recall_at",
]
