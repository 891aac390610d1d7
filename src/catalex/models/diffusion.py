"""Diffusion loss: a small network learns the density of a token given a condition (MAR, arXiv 2406.11838).

Used by UTGRec (arXiv 2504.04405, eq. 9) for the continuous latent tokens of an image: a squared error would
ask for their mean, which is a blur; the diffusion loss asks for their distribution. Each token stands alone;
all that ties the tokens of an image together is in the conditions.

Shape letters: M tokens x, C channels of a token, d width of a condition z, R rows (a token under one noise
draw), w width inside.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from catalex.models.diffusion_schedule import STEPS, Coefficients, DiffusionSchedule, coefficients
from catalex.models.losses import LossSum

FREQUENCIES = 256
"""Width of the sinusoidal embedding of a step (MAR)."""

HALF_BIN = 1 / 255
"""Half the width of the interval whose probability is the likelihood at step 0 (Ho et al. 2020, eq. 13)."""

LIMIT = 5.0
"""Largest value of a sampled channel, in standard deviations of the data (ours)."""


ROWS_KEPT = 2**16
"""Tokens times draws of a step whose activations are kept, about 15 GiB at width 1024 (ours)."""


class DiffusionLoss(nn.Module):
    """Trains a denoiser on (x, z) pairs, and samples x given z from it."""

    def __init__(
        self,
        channels: int,
        condition: int,
        *,
        width: int = 1024,
        blocks: int = 3,
        repeats: int = 4,
        recompute: bool | None = None,
    ) -> None:
        """
        Args:
            channels: C.
            condition: d.
            width: w of the denoiser (MAR, UTGRec: 1024).
            blocks: Its residual blocks (MAR, UTGRec: 3).
            repeats: Independent noise draws of each pair a step; the condition is computed once (MAR: 4).
            recompute: Drop the denoiser's activations and make them again in the backward pass, one draw at a
                time: about a quarter of the memory for a third more time. The value is the same. None: for
                steps of more than `ROWS_KEPT` rows.
        """
        super().__init__()
        self.channels, self.repeats, self.recompute = channels, repeats, recompute
        self.schedule = DiffusionSchedule.cosine()
        self.denoiser = Denoiser(channels, condition, width, blocks)
        # not buffers: a model cast to bfloat16 keeps its schedule in float32
        self._tables: dict[torch.device, Tensor] = {}

    def forward(
        self, x: Tensor, z: Tensor, weight: Tensor, generator: torch.Generator | None = None
    ) -> LossSum:
        """Squared error of the predicted noise plus the variational bound that trains the variance, in bits.

        Args:
            x: ``(M, C)`` tokens, of variance about one.
            z: ``(M, d)`` their conditions.
            weight: ``(M,)`` 0 for tokens that do not count; their x may be anything, even NaN.
            generator: Source of steps and noise, on the device of x; the device's default one when None.

        Returns:
            Weighted sum of the tokens' losses (mean over C and repeats), and the sum of the weights.
        """
        x, weight = torch.where(weight[:, None] > 0, x, 0.0).float(), weight.float()
        rows, count = self.repeats * len(x), weight.sum()
        t = torch.randint(len(self.schedule.betas), (rows,), device=x.device, generator=generator)
        eps = torch.randn(rows, self.channels, device=x.device, generator=generator)
        condition = self.denoiser.condition(z)
        recompute = rows > ROWS_KEPT if self.recompute is None else self.recompute
        if not (recompute and torch.is_grad_enabled()):
            x, condition = x.repeat(self.repeats, 1), condition.repeat(self.repeats, 1)
            total = (self._losses(x, condition, t, eps) * weight.repeat(self.repeats)).sum()
        else:
            total = torch.zeros((), device=x.device)
            for draw_t, draw_eps in zip(t.chunk(self.repeats), eps.chunk(self.repeats), strict=True):
                losses = checkpoint(
                    self._losses,
                    x,
                    condition,
                    draw_t,
                    draw_eps,
                    use_reentrant=False,
                    preserve_rng_state=False,  # nothing inside is random, and saving the state would stall
                )
                total = total + (losses * weight).sum()
        return LossSum(total / self.repeats, count)

    @torch.no_grad()
    def sample(
        self,
        z: Tensor,
        *,
        steps: int = 100,
        temperature: float = 1.0,
        limit: float = LIMIT,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Tokens ``(M, C)`` for conditions ``z (M, d)`` by ancestral sampling over `steps` spaced steps.

        Args:
            z: Conditions.
            steps: Network evaluations (MAR, UTGRec: 100).
            temperature: Scales the noise added at each step: 1 samples the density, less sharpens it (MAR).
            limit: Bound on the channels of the token that each step implies. Ours: where next to no signal is
                left, x_0 has the predicted noise's error times 20,000, and a bad guess sends the sample
                astray; bounding it there costs nothing. Infinity is MAR's sampler.
            generator: Source of noise, on the device of z; the device's default one when None.

        Raises:
            ValueError: When `steps` is outside 1..1000.
        """
        schedule = self.schedule.respaced(steps)
        table = schedule.table(z.device)
        condition = self.denoiser.condition(z)
        size = (len(z), self.channels)
        x = torch.randn(size, device=z.device, generator=generator)
        for i in reversed(range(steps)):
            c = Coefficients(*table[i].unbind())
            t = torch.full((1,), int(schedule.steps[i]), device=z.device)
            eps, variance = self.denoiser(x, t, condition).float().chunk(2, dim=1)
            start = ((x - c.noise * eps) / c.signal).clamp(-limit, limit)
            x = c.from_start * start + c.from_now * x
            if i > 0:
                noise = torch.randn(size, device=z.device, generator=generator)
                x = x + (0.5 * log_variance(variance, c)).exp() * noise * temperature
        return x

    def _losses(self, x: Tensor, condition: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """``(M,)`` losses of one draw."""
        c = coefficients(self._table(x.device), t)
        noisy = c.signal * x + c.noise * eps
        guess, variance = self.denoiser(noisy, t, condition).float().chunk(2, dim=1)
        bound = variational_bound(x, noisy, guess.detach(), variance, t, c)
        error: Tensor = (guess - eps).square().mean(1)
        return error + bound

    def _table(self, device: torch.device) -> Tensor:
        if device not in self._tables:
            self._tables[device] = self.schedule.table(device)
        return self._tables[device]


def log_variance(v: Tensor, c: Coefficients) -> Tensor:
    """Logarithm of the variance that the network's ``v`` asks for: -1 the lowest, +1 the highest."""
    share: Tensor = (v + 1) / 2
    return share * c.high + (1 - share) * c.low


def variational_bound(x: Tensor, noisy: Tensor, eps: Tensor, v: Tensor, t: Tensor, c: Coefficients) -> Tensor:
    """L_vb of each row in bits per channel (Nichol & Dhariwal 2021, eq. 4-6).

    For t > 0 the divergence of the model's step from q(x_{t-1} | x_t, x_0); for t = 0 the negative logarithm
    of the probability of an interval of width 2/255 around x, as for pixels. Latents have no edges at -1 and
    1, so the intervals there are not special.

    Args:
        x: ``(R, C)`` tokens.
        noisy: ``(R, C)`` x_t.
        eps: ``(R, C)`` predicted noise; pass it detached, so that only `v` learns from the bound.
        v: ``(R, C)`` the network's variance output.
        t: ``(R,)`` steps.
        c: Coefficients of these steps.

    Returns:
        ``(R,)``.
    """
    mean = c.back * (noisy - c.back_noise * eps)
    log_var = log_variance(v, c)
    true_mean = c.from_start * x + c.from_now * noisy
    divergence = 0.5 * (
        log_var - c.low - 1 + (c.low - log_var).exp() + (true_mean - mean).square() * (-log_var).exp()
    )
    scale = (-0.5 * log_var).exp()
    upper, lower = ((x - mean + side) * scale for side in (HALF_BIN, -HALF_BIN))
    mass = torch.special.ndtr(upper) - torch.special.ndtr(lower)
    surprise = -mass.clamp(min=1e-12).log()
    return torch.where(t[:, None] == 0, surprise, divergence).mean(1) / math.log(2)


class Denoiser(nn.Module):
    """Predicts noise and variance of each row from x_t, t and a condition: MLP blocks with adaptive norms."""

    def __init__(self, channels: int, condition: int, width: int, blocks: int) -> None:
        super().__init__()
        self.enter = nn.Linear(channels, width)
        self.time = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.condition = nn.Linear(condition, width)
        self.blocks = nn.ModuleList(AdaptiveBlock(width) for _ in range(blocks))
        self.modulate = nn.Linear(width, 2 * width)
        self.leave = nn.Linear(width, 2 * channels)
        self.reset()

    def reset(self) -> None:
        """MAR's start: every block is the identity, the predicted noise is 0 and the variance halfway."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for index in (0, 2):
            nn.init.normal_(cast(nn.Linear, self.time[index]).weight, std=0.02)
        adaptive = [cast(AdaptiveBlock, block).modulate for block in self.blocks]
        for linear in (*adaptive, self.modulate, self.leave):
            nn.init.zeros_(linear.weight)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """``(R, 2 C)``: noise, then variance between -1 and 1 (not enforced).

        Args:
            x: ``(R, C)`` noisy tokens.
            t: ``(R,)`` steps, or ``(1,)`` one for all.
            condition: ``(R, w)``, what `condition` made of z.
        """
        dtype = self.enter.weight.dtype
        if len(t) > STEPS:  # more rows than steps: embed each step once
            every = torch.arange(STEPS, device=t.device)
            time = F.embedding(t, self.time(sinusoid(every).to(dtype)))
        else:
            time = self.time(sinusoid(t).to(dtype))
        y = F.silu(time + condition)
        x = self.enter(x.to(dtype))
        for block in self.blocks:
            x = block(x, y)
        shift, scale = self.modulate(y).chunk(2, dim=-1)
        out: Tensor = self.leave(F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift)
        return out


class AdaptiveBlock(nn.Module):
    """``x + gate * MLP(LN(x) (1 + scale) + shift)`` with shift, scale and gate from the condition (AdaLN)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.modulate = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """``x (R, w)`` under ``y (R, w)``, which has passed its SiLU."""
        shift, scale, gate = self.modulate(y).chunk(3, dim=-1)
        out: Tensor = x + gate * self.mlp(self.norm(x) * (1 + scale) + shift)
        return out


def sinusoid(t: Tensor) -> Tensor:
    """``(R, 256)`` cosines and sines of the steps ``t (R,)`` at wavelengths 2 pi .. 2 pi 10^4."""
    half = FREQUENCIES // 2
    frequencies = torch.exp(
        -math.log(10_000) * torch.arange(half, device=t.device, dtype=torch.float32) / half
    )
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
