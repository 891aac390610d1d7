"""Recall@K with one target a user (then equal to the hit rate)."""

from __future__ import annotations

import numpy as np

from catalex.types import Doubles, Ints


def recall_at(ranks: Ints, k: int) -> Doubles:
    """``Recall@K = 1[r <= K]`` of each user.

    Args:
        ranks: ``(B,)`` 1-based rank of each target among all items; 0 where it was not found.
        k: Length K >= 1 of the list that a user sees.

    Returns:
        ``(B,)`` zeros and ones. For the ranks 1, 4, 12, 7: Recall@5 is 1, 1, 0, 0 and Recall@10 is 1, 1, 0,
        1.
    """
    assert k >= 1
    assert ranks.dtype.kind == "i"
    return ((ranks >= 1) & (ranks <= k)).astype(np.float64)
