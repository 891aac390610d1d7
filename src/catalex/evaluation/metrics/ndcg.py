"""NDCG@K with one target a user: a hit counts less the further down it stands."""

from __future__ import annotations

import numpy as np

from catalex.evaluation.metrics.recall import recall_at
from catalex.types import Doubles, Ints


def ndcg_at(ranks: Ints, k: int) -> Doubles:
    """``NDCG@K = 1[r <= K] / log2(r + 1)`` of each user; the ideal value is 1 (target first).

    Args:
        ranks: ``(B,)`` 1-based rank of each target among all items; 0 where it was not found.
        k: Length K >= 1 of the list that a user sees.

    Returns:
        ``(B,)`` values in [0, 1], never above Recall@K. For the ranks 1, 4, 12, 7: NDCG@10 is 1, .4307, 0,
        .3333.
    """
    return recall_at(ranks, k) / np.log2(np.maximum(ranks, 1) + 1.0)
