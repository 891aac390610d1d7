"""The noise schedule of a diffusion model: how much signal is left after t steps, and how to go back one.

Forward: ``x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps``. Cosine schedule and learned variance range of
Nichol & Dhariwal 2021 (arXiv 2102.09672), posterior of Ho et al. 2020 (arXiv 2006.11239, eq. 7); the settings
are MAR's (arXiv 2406.11838, section 3.2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from catalex.types import Doubles, Ints

STEPS = 1000
"""Steps of the full schedule (MAR)."""


@dataclass(frozen=True)
class Coefficients:
    """What the equations need of chosen steps; each tensor is ``(R, 1)`` float32.

    Attributes:
        signal: sqrt(abar_t).
        noise: sqrt(1 - abar_t).
        back: 1 / sqrt(1 - beta_t): the mean of step t - 1 is ``back * (x_t - back_noise * eps)``.
        back_noise: beta_t / sqrt(1 - abar_t).
        from_start: Weight of x_0 in the mean of q(x_{t-1} | x_t, x_0).
        from_now: Weight of x_t in it.
        low: Logarithm of the variance of q(x_{t-1} | x_t, x_0): the lowest that a model may give.
        high: Logarithm of beta_t: the highest.
    """

    signal: Tensor
    noise: Tensor
    back: Tensor
    back_noise: Tensor
    from_start: Tensor
    from_now: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True, eq=False)
class DiffusionSchedule:
    """Variances of S noise steps, in float64.

    Attributes:
        betas: ``(S,)`` variance added at each step.
        steps: ``(S,)`` their numbers in the schedule that the model was trained with.
    """

    betas: Doubles
    steps: Ints

    @classmethod
    def cosine(cls, steps: int = STEPS) -> DiffusionSchedule:
        """``abar(s) = cos^2((s + 0.008) / 1.008 * pi / 2)`` at s = t / steps, betas at most 0.999."""
        s = np.arange(steps + 1, dtype=np.float64) / steps
        abar = np.cos((s + 0.008) / 1.008 * math.pi / 2) ** 2
        return cls(np.minimum(1 - abar[1:] / abar[:-1], 0.999), np.arange(steps, dtype=np.int64))

    def respaced(self, steps: int) -> DiffusionSchedule:
        """A shorter schedule through `steps` evenly spaced steps of this one, first and last included.

        Its betas are such that abar at the chosen steps stays as it is.

        Raises:
            ValueError: When `steps` is not between 1 and the present number.
        """
        if not 1 <= steps <= len(self.betas):
            raise ValueError(f"sampling steps must lie in 1..{len(self.betas)}, found {steps}")
        stride = (len(self.betas) - 1) / (steps - 1) if steps > 1 else 0.0
        chosen = np.array([round(i * stride) for i in range(steps)], dtype=np.int64)
        if steps == 1:
            chosen[:] = len(self.betas) - 1  # one step has to start where nothing but noise is left
        abar = self.abar[chosen]
        return DiffusionSchedule(1 - abar / np.concatenate([[1.0], abar[:-1]]), self.steps[chosen])

    @cached_property
    def abar(self) -> Doubles:
        """``(S,)`` share of the signal's variance left after step t."""
        return np.cumprod(1 - self.betas, dtype=np.float64)

    @cached_property
    def columns(self) -> Doubles:
        """``(S, 8)`` the fields of `Coefficients`, in their order."""
        beta, abar = self.betas, self.abar
        before = np.concatenate([[1.0], abar[:-1]])
        variance = beta * (1 - before) / (1 - abar)
        # step 0 has variance 0; its logarithm is replaced by the next step's, as Nichol & Dhariwal do
        variance[0] = variance[1] if len(variance) > 1 else beta[0]
        return np.stack(
            [
                np.sqrt(abar),
                np.sqrt(1 - abar),
                1 / np.sqrt(1 - beta),
                beta / np.sqrt(1 - abar),
                beta * np.sqrt(before) / (1 - abar),
                np.sqrt(1 - beta) * (1 - before) / (1 - abar),
                np.log(variance),
                np.log(beta),
            ],
            axis=1,
        )

    def table(self, device: torch.device) -> Tensor:
        """``(S, 8)`` `columns` in float32 on `device`."""
        return torch.tensor(self.columns, dtype=torch.float32, device=device)


def coefficients(table: Tensor, t: Tensor) -> Coefficients:
    """Rows ``t (R,)`` of a schedule's table ``(S, 8)``."""
    return Coefficients(*table[t].unsqueeze(-1).unbind(1))
