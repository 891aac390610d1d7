"""Adam with decay in one of two ways, and the learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

Schedule = Literal["cosine", "constant", "inverse-sqrt"]

Decay = Literal["decoupled", "l2"]
"""`decoupled`: a step takes away a share of each matrix beside what Adam does (AdamW). `l2`: the weights are
added to the gradients before Adam scales them, so what has no gradient of its own, such as the embedding of
an item that is seldom seen, shrinks by whole steps; of all parameters, as public code of sequential
recommenders has it."""

RATIO = "rate_ratio"
"""Key of a parameter group: its learning rate as a multiple of the others'."""


@dataclass(frozen=True)
class Recipe:
    """What Adam is told, after the batch size was taken into account."""

    learning_rate: float
    weight_decay: float
    warmup_steps: int
    decay: Decay = "decoupled"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def for_batch(self, batch_size: int, base: int | None) -> Recipe:
        """The same recipe for another batch size: the square-root rule of Adam.

        With ``k = batch_size / base``, k times fewer steps take the same path through the loss if the rate
        grows by ``sqrt(k)``, the averages forget k times faster, and eps shrinks by ``sqrt(k)`` (Malladi et
        al. 2022, arXiv 2205.10287). The decay of a step grows with the rate and by ``sqrt(k)`` again, so that
        as much is decayed in an epoch; warm-up takes as many examples as before. Decay of kind `l2` is part
        of the loss and stays as it is.

        >>> recipe = Recipe(1e-3, 0.05, 300).for_batch(4096, 1024)
        >>> recipe.learning_rate, recipe.warmup_steps, [round(beta, 6) for beta in recipe.betas]
        (0.002, 75, [0.6, 0.996])
        """
        if base is None or base == batch_size:
            return self
        k = batch_size / base
        return Recipe(
            self.learning_rate * math.sqrt(k),
            self.weight_decay * (math.sqrt(k) if self.decay == "decoupled" else 1.0),
            math.ceil(self.warmup_steps / k),
            self.decay,
            (max(0.0, 1 - k * (1 - self.betas[0])), max(0.0, 1 - k * (1 - self.betas[1]))),
            self.eps / math.sqrt(k),
        )


def adam(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    device: str,
    *,
    fast: Iterable[nn.Parameter] = (),
    ratio: float = 1.0,
    decay: Decay = "decoupled",
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> torch.optim.Adam:
    """AdamW, which decays no gains, biases or other vectors; or Adam with L2.

    The learning rate is a tensor on CUDA, so that a captured step sees its changes.

    Args:
        model: Whose trained parameters it steps.
        learning_rate: Of the first step.
        weight_decay: How much; of matrices, of kind `l2` of all.
        device: "cpu" or "cuda".
        fast: Parameters that take `ratio` times the rate of the others.
        ratio: See `fast`.
        decay: Its kind.
        betas: How much of the averages of gradients and of their squares a step keeps.
        eps: Added to the root of the latter.
    """
    quick = {id(parameter) for parameter in fast}
    on_cuda = device.startswith("cuda")
    groups = []
    for hurried in (False, True) if quick else (False,):
        own = [p for p in model.parameters() if p.requires_grad and (id(p) in quick) == hurried]
        share = ratio if hurried else 1.0
        for matrices in (True, False):
            chosen = [p for p in own if (p.ndim >= 2) == matrices]
            rate = learning_rate * share
            groups.append(
                {
                    "params": chosen,
                    "weight_decay": weight_decay if matrices or decay == "l2" else 0.0,
                    "lr": torch.tensor(rate, device=device) if on_cuda else rate,
                    RATIO: share,
                }
            )
    kind = torch.optim.AdamW if decay == "decoupled" else torch.optim.Adam
    return kind([g for g in groups if g["params"]], betas=betas, eps=eps, fused=on_cuda, capturable=on_cuda)


def learning_rate(step: int, *, peak: float, total: int, warmup: int, schedule: Schedule) -> float:
    """Learning rate of step 0, 1, ..: linear warm-up to `peak`, then the schedule (cosine ends at 0)."""
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))
    if schedule == "inverse-sqrt":
        return peak * math.sqrt(max(warmup, 1) / (step + 1))
    return peak


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Change the learning rate of every group, in place where it is a tensor; groups with a ratio of their
    own
    take that many times as much."""
    for group in optimizer.param_groups:
        own = rate * group.get(RATIO, 1.0)
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(own)
        else:
            group["lr"] = own
