"""Finite scalar quantization: a few bounded numbers, each rounded to one of a few values (arXiv 2309.15505).

There is no codebook to learn and none that could collapse: the codes are the points of a fixed grid. With
``n_j`` values for number j (RecGPT, arXiv 2506.06270, released code)::

    half_j = (n_j - 1) (1 - 1e-3) / 2,    o_j = 0.5 if n_j is even else 0,    s_j = tan(o_j / half_j)
    z_j    = tanh(u_j + s_j) half_j - o_j,    v_j = round(z_j),    value_j = v_j / floor(n_j / 2)
    code   = sum_j (v_j + floor(n_j / 2)) prod_{m < j} n_m

``s_j`` is meant to bring u = 0 to a grid point for even n_j; atanh would do so exactly, tan is near enough.

Shape letters: ``(..., d)`` the d numbers of a code, K = prod n_j codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod, tan

import torch
from torch import Tensor, nn

from catalex.quantize.distances import lowest
from catalex.quantize.vq import straight_through

SHRINK = 1e-3
"""Share by which the outermost bounds stay inside the grid, so that rounding never leaves it."""
CLOSE = 1e-3
"""Distance to a border between two values below which rounding and distances in float32 could disagree."""


class Grid(nn.Module):
    """The grid of K = prod n_j codes; holds no parameters.

    Args:
        levels: n_j >= 2 values for each of the d numbers.
    """

    reach: Tensor
    offset: Tensor
    shift: Tensor
    middle: Tensor
    basis: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"a grid needs at least two values for each number, found {tuple(levels)}")
        self.levels = tuple(levels)
        half = [(n - 1) * (1 - SHRINK) / 2 for n in levels]
        offset = [0.0 if n % 2 else 0.5 for n in levels]
        shift = [tan(o / h) for o, h in zip(offset, half, strict=True)]
        basis = [prod(levels[:j]) for j in range(len(levels))]
        for name, values in (("reach", half), ("offset", offset), ("shift", shift)):
            self.register_buffer(name, torch.tensor(values), persistent=False)
        self.register_buffer("middle", torch.tensor([n // 2 for n in levels]), persistent=False)
        self.register_buffer("basis", torch.tensor(basis), persistent=False)

    @property
    def size(self) -> int:
        """K, number of codes."""
        return prod(self.levels)

    @property
    def width(self) -> int:
        """d, numbers of a code."""
        return len(self.levels)

    def bound(self, numbers: Tensor) -> Tensor:
        """z ``(..., d)`` float32 inside the grid, of any numbers u ``(..., d)``."""
        with torch.autocast(numbers.device.type, enabled=False):
            return torch.tanh(numbers.float() + self.shift) * self.reach - self.offset

    def forward(self, numbers: Tensor) -> Tensor:
        """Quantized values ``(..., d)`` in about [-1, 1]; the gradient is that of `bound`
        (straight-through)."""
        bounded = self.bound(numbers)
        return straight_through(bounded, bounded.round()) / self.middle

    def codes(self, numbers: Tensor) -> Tensor:
        """Code ``(...)`` int64 of u ``(..., d)``."""
        return ((self.bound(numbers).round().long() + self.middle) * self.basis).sum(-1)

    def values(self, codes: Tensor) -> Tensor:
        """Values ``(..., d)`` of codes ``(...)`` in [0, K); the inverse of `codes_of`."""
        sizes = torch.tensor(self.levels, device=codes.device)
        digits = codes.unsqueeze(-1) // self.basis % sizes
        return (digits - self.middle).float() / self.middle

    def codes_of(self, values: Tensor) -> Tensor:
        """Code ``(...)`` of exact grid values ``(..., d)``."""
        return (((values * self.middle).round().long() + self.middle) * self.basis).sum(-1)

    def distances(self, numbers: Tensor) -> Tensor:
        """Squared distances ``(N, K)`` float32 in the space of values, from u ``(N, d)`` to every code.

        They are sums over the d numbers, so the table is grown number by number.
        """
        bounded, table = self.bound(numbers), numbers.new_zeros(len(numbers), 1, dtype=torch.float32)
        for j, size in enumerate(self.levels):
            steps = torch.arange(size, device=numbers.device) - self.middle[j]
            squares = ((bounded[:, j, None] - steps) / self.middle[j]).square()
            table = (squares[:, :, None] + table[:, None, :]).flatten(1)
        return table

    def nearest(self, numbers: Tensor) -> Tensor:
        """Code ``(N,)`` at the smallest of `distances`, ties to the lowest; that of `codes` but for rounding
        within `CLOSE` of a border."""
        bounded = self.bound(numbers)
        found = self.codes(numbers)
        near = ((bounded - bounded.floor() - 0.5).abs() < CLOSE).any(-1)
        rows = torch.nonzero(near).squeeze(1)
        if len(rows):
            found[rows] = lowest(self.distances(numbers[rows]))
        return found
