"""MRR@K: the reciprocal rank of the target, cut after K."""

from __future__ import annotations

import numpy as np

from catalex.evaluation.metrics.recall import recall_at
from catalex.types import Doubles, Ints


def mrr_at(ranks: Ints, k: int) -> Doubles:
    """``MRR@K = 1[r <= K] / r`` of each user.

    Args:
        ranks: ``(B,)`` 1-based rank of each target among all items; 0 where it was not found.
        k: Length K >= 1 of the list that a user sees.

    Returns:
        ``(B,)`` values in [0, 1], never above NDCG@K. For the ranks 1, 4, 12, 7: MRR@10 is 1, .25, 0, .1429.
    """
    return recall_at(ranks, k) / np.maximum(ranks, 1)
