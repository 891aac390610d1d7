"""What a constrained decode is made of: catalogues, histories, and the least arithmetic of one request."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from catalex.models.t5 import T5

CODES = 256


def catalogue(items: int, levels: int) -> np.ndarray[Any, Any]:
    """``(items, levels)`` distinct random identifiers as tokens, in random order, or all there are."""
    total = CODES**levels
    if 0.9 * total < items != total:
        raise SystemExit(f"{items} distinct identifiers of {levels} codes cannot be drawn; raise --levels")
    generator = np.random.default_rng(0)
    drawn = np.arange(total if items == total else 0)
    while len(drawn) < items:
        drawn = np.unique(np.concatenate([drawn, generator.integers(0, total, items + items // 4 + 100)]))
    drawn = generator.permutation(drawn)[:items]
    codes = np.stack([drawn // CODES ** (levels - 1 - level) % CODES for level in range(levels)], axis=1)
    return codes + 1 + CODES * np.arange(levels)


def histories(rows: np.ndarray[Any, Any], batch: int, length: int, end: int) -> torch.Tensor:
    """``(batch, length * L + 1)`` tokens of random items and the end token."""
    chosen = np.random.default_rng(batch).integers(0, len(rows), (batch, length))
    return torch.from_numpy(np.pad(rows[chosen].reshape(batch, -1), ((0, 0), (0, 1)), constant_values=end))


def operations(model: T5, tokens: int, levels: int, beam: int) -> float:
    """Least floating-point operations of one request with exact scores over the whole vocabulary.

    The history of `tokens` is encoded once, its cross-attention keys and values are made once for all beams,
    the first step has one row. A multiplication and an addition count two; element-wise work counts nothing.
    """
    o = model.options
    inner = o.heads * o.head_width
    layer = 2 * o.hidden * (4 * inner + 2 * o.feed_forward)  # of one row: own attention and feed-forward
    encoder = o.layers * tokens * (layer + 4 * tokens * inner)
    cross = o.layers * tokens * 2 * o.hidden * 2 * inner
    rows = 1 + beam * (levels - 1)
    own = 1 + beam * (levels * (levels + 1) // 2 - 1)  # keys of all queries
    decoder = o.layers * (rows * (layer + 2 * o.hidden * 2 * inner + 4 * tokens * inner) + own * 4 * inner)
    return float(encoder + cross + decoder + rows * 2 * o.hidden * model.vocabulary)
