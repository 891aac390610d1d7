"""Several processes that together compute what one process would compute on the joined batch.

The contract of training: every process runs the same steps on its own rows, then gradients are *averaged*
over processes. That is the gradient of the joined batch only if each process weighs its loss rightly, which
`global_mean` does, and if what one process contributes to another's loss finds its way back, which
`gather_with_gradient` does.

Everything is a no-op with one process. torch.distributed, which accelerate starts, is asked for the
processes, on every backend: padded all-gathers and all-reduces are the only traffic, since gloo knows no
uneven all-gather. Every process must make the same calls in the same order, also one that has no rows of a
batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from catalex.types import Ints

BUCKET = 32 * 2**20
"""Gradient elements sent in one message: few messages, and 128 MiB of extra memory in float32."""

Rows = TypeVar("Rows", Ints, Tensor, list[int])


class Processes(Protocol):
    """What `accelerate.PartialState` knows of the processes."""

    process_index: int
    num_processes: int


def process_count() -> int:
    """P; 1 when no process group was started."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_index() -> int:
    """This process's number, from 0 to P - 1."""
    return dist.get_rank() if process_count() > 1 else 0


def share(rows: Rows, processes: Processes | None = None) -> Rows:
    """The rows of a global batch ``(B, ..)`` that this process takes: every P-th, beginning at its number.

    Strided, so that shares differ by one row at most and every row is in exactly
    one share. With fewer rows than processes some shares are empty, and losses are still exact.

    Args:
        rows: Array, tensor or list whose first axis is the batch.
        processes: `accelerate.PartialState`; if left out, torch.distributed is asked.

    >>> from types import SimpleNamespace
    >>> share([10, 11, 12, 13, 14], SimpleNamespace(process_index=1, num_processes=2))
    [11, 13]
    """
    if processes is None:
        index, count = process_index(), process_count()
    else:
        index, count = processes.process_index, processes.num_processes
    return rows[index::count]


def gather_with_gradient(x: Tensor, counts: list[int] | None = None) -> Tensor:
    """The rows ``(B_1 + .. + B_P, ..)`` of all processes, in process order, from this one's ``(B_p, ..)``.

    Going back, a process receives for its rows the *sum* of all processes' gradients. Shares may differ in
    length; dtype and the other axes must not. Integers pass without gradient.

    Args:
        x: This process's rows.
        counts: `row_counts` of `x`, where it is known already; asking costs a wait for the device.
    """
    if process_count() == 1:
        return x
    gathered: Tensor = _Gather.apply(x, counts or row_counts(x))  # type: ignore[no-untyped-call]
    return gathered


def row_counts(x: Tensor) -> list[int]:
    """How many rows of ``(B_p, ..)`` each process has. Waits for the device if there are several."""
    if process_count() == 1:
        return [len(x)]
    mine = torch.tensor([len(x)], device=x.device)
    found = [torch.empty_like(mine) for _ in range(process_count())]
    dist.all_gather(found, mine)
    return [int(count) for count in torch.cat(found).tolist()]


class _Gather(torch.autograd.Function):
    """All-gather whose gradient is an all-reduce."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[int]) -> Tensor:
        first = sum(counts[: process_index()])
        ctx.mine = slice(first, first + len(x))
        padded = x.new_zeros((max(counts), *x.shape[1:]))
        padded[: len(x)] = x
        found = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(found, padded)
        return torch.cat([part[:count] for part, count in zip(found, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        summed = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed[ctx.mine], None


def global_mean(total: Tensor, count: Tensor | float) -> Tensor:
    """The mean over the joined batch, sum of `total` over processes by sum of `count`, as a loss.

    Its value is that mean on every process. Its gradient is this process's part times P, so that the
    *average* of the processes' gradients is the gradient of the mean. Where nothing is counted, both are 0.

    Args:
        total: ``()`` sum of this process's terms; 0 for a process without any, but still computed from the
            weights (an empty sum), so that its backward pass meets those of the others.
        count: ``()`` number (or weight) of the terms: items, tokens, items that have an image.
    """
    # A tensor filled on the device: a number copied there would wait for it.
    counted = count.detach() if isinstance(count, Tensor) else torch.full_like(total.detach(), count)
    if process_count() == 1:
        return torch.where(counted > 0, total / counted.to(total.dtype).clamp_min(_TINY), 0 * total)
    sums = torch.stack([total.detach().double(), counted.double()])
    dist.all_reduce(sums)
    by = torch.where(sums[1] > 0, 1 / sums[1].clamp_min(_TINY), 0.0)
    own = (total - total.detach()) * (process_count() * by).to(total.dtype)  # 0, but it has the gradient
    return (sums[0] * by).to(total.dtype) + own


_TINY = 1e-30
"""Keeps a division by zero out of the branch that is not taken, where it would make the gradient NaN."""


@torch.no_grad()
def same_everywhere(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors by those of the first process, in place: rounding may differ between machines."""
    if process_count() > 1:
        for tensor in tensors:
            whole = tensor.contiguous()
            dist.broadcast(whole, src=0)
            tensor.copy_(whole)


def meet(device: str | torch.device) -> None:
    """Wait until every process is here."""
    if process_count() > 1:
        dist.all_reduce(torch.zeros(1, device=device))
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()


@torch.no_grad()
def average_gradients(module: nn.Module) -> None:
    """Replace the gradients of `module` by their average over all processes.

    A parameter that only some processes used (the visual decoder, where a share has no image) counts as 0 on
    the others; one that no process used keeps no gradient, as with one process.
    """
    if process_count() == 1:
        return
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters:
        return
    used = torch.tensor(
        [p.grad is not None for p in parameters], dtype=torch.int32, device=parameters[0].device
    )
    dist.all_reduce(used, dist.ReduceOp.MAX)
    gradients = []
    for parameter, wanted in zip(parameters, used.tolist(), strict=True):
        if wanted:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        dist.all_reduce(flat)
        flat /= process_count()
        parts = flat.split([gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(gradients: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Gradients in order, in groups of one dtype and at most `BUCKET` elements (a larger one goes alone)."""
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        if bucket and (size + gradient.numel() > BUCKET or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.numel()
    if bucket:
        yield bucket
