"""Domain-stratified batches: equally many items of every domain in every step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from catalex.tokenizers.checkpoint import epoch_seed


class StratifiedBatches:
    """Rows of each epoch, a function of seed and epoch alone.

    An epoch has as many items as the domains have together. Each domain gives the same number n to every
    batch; it is gone through in random order as often as that takes.

    Args:
        sizes: Items of each of the P domains, whose rows stand one domain after the other.
        batch: Items of a batch over all domains; n = batch / P, at least 2.
        seed: Fixes the order.
    """

    def __init__(self, sizes: Sequence[int], batch: int, seed: int) -> None:
        self.sizes, self.seed = tuple(sizes), seed
        self.each = max(batch // len(sizes), 2)
        self.steps = math.ceil(sum(sizes) / (self.each * len(sizes)))

    def epoch(self, epoch: int) -> Iterator[Tensor]:
        """Rows ``(P, n)`` of each batch of an epoch."""
        streams, first = [], 0
        needed = self.steps * self.each
        for number, size in enumerate(self.sizes):
            generator = torch.Generator().manual_seed(epoch_seed(self.seed, epoch, f"order {number}"))
            turns = [torch.randperm(size, generator=generator) for _ in range(math.ceil(needed / size))]
            streams.append(first + torch.cat(turns)[:needed])
            first += size
        rows = torch.stack(streams).view(len(self.sizes), self.steps, self.each)
        yield from rows.unbind(1)
