"""AdamW with decay on matrices only, and the learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn

Schedule = Literal["cosine", "constant", "inverse-sqrt"]

RATIO = "rate_ratio"
"""Key of a parameter group: its learning rate as a multiple of the others'."""


def adamw(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    device: str,
    *,
    fast: Iterable[nn.Parameter] = (),
    ratio: float = 1.0,
) -> torch.optim.AdamW:
    """AdamW; gains, biases and other vectors are not decayed.

    The learning rate is a tensor on CUDA, so that a captured step sees its changes.

    Args:
        model: Whose trained parameters it steps.
        learning_rate: Of the first step.
        weight_decay: Of matrices.
        device: "cpu" or "cuda".
        fast: Parameters that take `ratio` times the rate of the others.
        ratio: See `fast`.
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
                    "weight_decay": weight_decay if matrices else 0.0,
                    "lr": torch.tensor(rate, device=device) if on_cuda else rate,
                    RATIO: share,
                }
            )
    return torch.optim.AdamW([g for g in groups if g["params"]], fused=on_cuda, capturable=on_cuda)


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
