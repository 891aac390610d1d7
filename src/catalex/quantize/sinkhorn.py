"""Balanced soft assignment: every code gets the same mass (Cuturi 2013; SwAV, arXiv 2006.09882).

LETTER's code assigns the last level of a training batch this way, so that no code there is left out.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def sinkhorn(distances: Tensor, epsilon: float = 0.003, iterations: int = 50) -> Tensor:
    """Plan ``(N, K)`` float64: every row sums to 1, every column to N / K (the columns as nearly as the
    iterations bring them).

    Args:
        distances: ``(N, K)`` finite; they are first brought to [-1, 1] by their middle and half range.
        epsilon: Temperature on that scale; the smaller, the nearer to a hard assignment.
        iterations: Rounds of scaling columns, then rows.

    Raises:
        ValueError: When `epsilon` is so small that the plan underflows in float64.
    """
    if epsilon < 2.9e-3:  # exp(-2 / epsilon) of the two ends of [-1, 1] must not vanish
        raise ValueError(f"epsilon must be at least 0.0029, found {epsilon}")
    table = distances.double()
    high, low = table.amax(), table.amin()
    middle = (high + low) / 2
    scaled = (table - middle) / (high - middle + 1e-5)
    kernel = torch.exp((scaled.amin(1, keepdim=True) - scaled) / epsilon)  # the largest of a row is 1
    rows = torch.ones(len(table), dtype=torch.float64, device=table.device)
    columns = torch.ones(table.shape[1], dtype=torch.float64, device=table.device)
    share = len(table) / table.shape[1]
    for _ in range(iterations):
        columns = share / (kernel.T @ rows).clamp(min=1e-300)
        rows = 1 / (kernel @ columns).clamp(min=1e-300)
    return rows[:, None] * kernel * columns
