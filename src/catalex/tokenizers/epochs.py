"""Tokenizers that are plain networks, trained to the end by the common loop: no early stopping."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from catalex.training.loop import Batch, TrainingOptions, train
from catalex.training.seeds import generator
from catalex.types import Ints


class RowPlan:
    """The batches of one epoch: all rows in random order, the last batch filled up from the first."""

    def __init__(self, rows: Ints, batch_size: int, make: Callable[[Ints], Batch]) -> None:
        self.rows, self.batch_size, self.make = rows, min(batch_size, len(rows)), make

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __getitem__(self, index: int, /) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(index)
        places = np.arange(index * self.batch_size, (index + 1) * self.batch_size) % len(self.rows)
        return self.make(self.rows[places])


def train_epochs(
    network: nn.Module,
    items: int,
    make: Callable[[Ints], Batch],
    loss: Callable[[nn.Module, Batch], Tensor],
    *,
    options: TrainingOptions,
    seed: int,
    device: str,
    partial: Path | None,
    name: str,
    judge: Callable[[], list[float]],
) -> dict[str, list[float] | list[list[float]] | int]:
    """Train `network` in place for all of ``options.epochs``; it ends on the CPU, in evaluation mode.

    Args:
        items: N.
        make: The batch, on the device, of rows ``(B,)``.
        loss: Mean loss of a batch.
        judge: Share of the codes used at each level by the network as it is; called once, at the end.

    Returns:
        Curve ``total``, a value an epoch; ``utilisation``, a list with one entry; ``steps``.
    """
    epochs = [0]

    def plan(epoch: int) -> RowPlan:
        epochs[0] = epoch
        return RowPlan(generator(seed, "epoch", epoch).permutation(items), options.batch_size, make)

    report = train(
        network,
        plan=plan,
        loss=loss,
        validate=lambda _: float(epochs[0]),  # the latest epoch counts as the best
        options=options.model_copy(update={"evaluate_every": 1, "patience": options.epochs + 1}),
        seed=seed,
        device=device,
        partial=partial,
        name=name,
        metric_name="",
    )
    network.cpu().eval()
    with torch.no_grad():
        used = judge()
    return {"total": report.curves["loss"], "utilisation": [used], "steps": report.steps}
