"""AdamW with decay on matrices only, and the learning-rate schedules."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

Schedule = Literal["cosine", "constant", "inverse-sqrt"]


def adamw(model: nn.Module, learning_rate: float, weight_decay: float, device: str) -> torch.optim.AdamW:
    """AdamW; gains, biases and other vectors are not decayed.

    The learning rate is a tensor on CUDA, so that a captured step sees its changes.
    """
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    on_cuda = device.startswith("cuda")
    rate = torch.tensor(learning_rate, device=device) if on_cuda else learning_rate
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=rate, fused=on_cuda, capturable=on_cuda)


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
    """Change the learning rate of every group, in place where it is a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
