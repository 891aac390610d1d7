"""Sums of losses that can be averaged later, and a cross-entropy over a large vocabulary in little memory.

A mean over the tokens of *all* processes is not the mean of the processes' means. Decoders therefore return a
sum and a count; whoever knows the other processes divides.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK = 2**25
"""Logits that exist at one time: 128 MiB in float32, about three such buffers while a chunk is worked on."""


class LossSum(NamedTuple):
    """A loss before it is averaged; both are float32 scalars.

    Attributes:
        total: Sum of the losses of everything that counts.
        count: How much counts: real tokens, or items with an image. No gradient.
    """

    total: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nobody needs here

    def mean(self) -> Tensor:
        """``total / count``; 0 (with zero gradients) when nothing counts."""
        return self.total / self.count.clamp(min=1)


def summed_cross_entropy(states: Tensor, table: Tensor, targets: Tensor, keep: Tensor) -> LossSum:
    """Cross-entropy of a linear head without ever holding all its logits.

    The logits of R rows over V words are made a few rows at a time. As the result is a plain sum, the
    gradient of each chunk is known as soon as its logits are, so it is formed in the forward pass and the
    logits thrown away: one product fewer than recomputing them in the backward pass. Under autocast the
    products run in its type; softmax, sum and gradient of `table` stay in float32. No second derivative.

    Args:
        states: ``(R, d)`` inputs of the head.
        table: ``(V, d)`` weight of the head; the logits are ``states @ table.T``.
        targets: ``(R,)`` int64 words; read only where `keep` holds.
        keep: ``(R,)`` bool, the rows that count.

    Returns:
        Sum over the kept rows, and how many there are.
    """
    count = keep.sum().float()
    if states.device.type == "cpu":  # a shape that depends on data costs nothing here, but a stall on a GPU
        states, targets, keep = states[keep], targets[keep], keep[keep]
    device = states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else table.dtype
    targets = torch.where(keep, targets, 0)
    total: Tensor = _SummedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        states, table, targets, keep, dtype, torch.is_grad_enabled()
    )
    return LossSum(total, count)


class _SummedCrossEntropy(torch.autograd.Function):
    """The sum in the forward pass together with its gradients, which the backward pass only scales."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        table: Tensor,
        targets: Tensor,
        keep: Tensor,
        dtype: torch.dtype,
        train: bool,
    ) -> Tensor:
        rows = max(1, CHUNK // len(table))
        of_states = torch.empty_like(states) if train and ctx.needs_input_grad[0] else None
        of_table = torch.zeros_like(table, dtype=torch.float32) if train and ctx.needs_input_grad[1] else None
        total = torch.zeros((), device=states.device)
        with torch.autocast(states.device.type, enabled=False):
            words = table.to(dtype)
            for start in range(0, len(states), rows):
                here = slice(start, start + rows)
                x, right, counted = states[here].to(dtype), targets[here, None], keep[here].float()
                logs = F.log_softmax((x @ words.T).float(), dim=1)
                total -= (logs.gather(1, right)[:, 0] * counted).sum()
                if of_states is None and of_table is None:
                    continue
                slope = logs.exp_()  # d sum / d logits = softmax - one_hot, on rows that count
                slope.scatter_add_(1, right, torch.full_like(right, -1, dtype=torch.float32))
                slope = slope.mul_(counted[:, None]).to(dtype)
                if of_states is not None:
                    of_states[here] = slope @ words
                if of_table is not None:
                    of_table += slope.T @ x
        ctx.save_for_backward(of_states, of_table)
        ctx.table_dtype = table.dtype
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        of_states, of_table = ctx.saved_tensors
        return (
            None if of_states is None else (of_states * slope).to(of_states.dtype),
            None if of_table is None else (of_table * slope).to(ctx.table_dtype),
            None,
            None,
            None,
            None,
        )
