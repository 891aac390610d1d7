"""One captured search: static inputs, a CUDA graph, static outputs, and hands that fill and empty them.

A graph replays fixed addresses and sizes, so there is one recording for each bucket of users and tokens (and
kind of mask). All share one pool of memory: only one runs at a time. Two slots of page-locked host memory let
the next batch be handed over while the device works on this one; nothing waits before results are asked for.
On a CPU the program simply runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from catalex.capturing import capturing
from catalex.decoding.beam import Decoded
from catalex.models.t5 import PAD

SLOTS = 2
"""Batches handed over and not yet fetched, at most."""


@dataclass(frozen=True)
class Bucket:
    """What a graph is captured for.

    Attributes:
        users, tokens: Sizes of the batch.
        excluded: Width of the list of excluded items; 0 for none.
        masks: Rows of item masks that are computed for the batch (1, or one a user); 0 for none.
        filters: Whether users choose among resident filters.
    """

    users: int
    tokens: int
    excluded: int = 0
    masks: int = 0
    filters: bool = False


@dataclass
class _Slot:
    tokens: Tensor
    excluded: Tensor
    chosen: Tensor
    found: Tensor
    done: Any = None


@dataclass(frozen=True)
class Pending:
    """A batch that the device works on."""

    slot: _Slot
    users: int

    def result(self) -> Decoded:
        """Wait for the batch. To be called before two more batches are handed over."""
        if self.slot.done is not None:
            self.slot.done.synchronize()
        # numpy, whose calls take a tenth of torch's time: a request of 0.3 ms notices
        items, scores = self.slot.found.numpy()[:, : self.users]
        return Decoded(
            torch.from_numpy(items.astype(np.int64)), torch.from_numpy(scores.copy().view(np.float32))
        )


@dataclass
class Recording:
    """The static tensors of a bucket and what runs over them.

    Args:
        bucket: Sizes.
        device: Where the program runs.
        k: Results a user.
        program: Reads `tokens`, `excluded`, `chosen`; returns ``(2, users, k)`` int32.
        pool: Memory pool of the graphs; None on a CPU.
    """

    bucket: Bucket
    device: torch.device
    k: int
    program: Callable[[Recording], Tensor]
    pool: Any = None
    mask_levels: tuple[Tensor, ...] = ()
    _graph: Any = field(default=None, init=False)
    _next: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        users, b = self.bucket.users, self.bucket
        self.tokens = torch.full((users, b.tokens), PAD, dtype=torch.int32, device=self.device)
        self.excluded = torch.full((users, b.excluded), -1, dtype=torch.long, device=self.device)
        self.chosen = torch.zeros(users, dtype=torch.int32, device=self.device)
        if b.masks > 1:
            self.chosen.copy_(torch.arange(users, dtype=torch.int32))
        pinned = self.device.type == "cuda"
        self._slots = [
            _Slot(
                _host(self.tokens, pinned),
                _host(self.excluded, pinned),
                _host(self.chosen, pinned),
                torch.empty(2, users, self.k, dtype=torch.int32, pin_memory=pinned),
            )
            for _ in range(SLOTS)
        ]
        if pinned:
            self._capture()

    def _capture(self) -> None:
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            self._run()  # compiles kernels and fills the libraries' workspaces
        torch.cuda.current_stream(self.device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with capturing(self._graph, self.pool):
            self._found = self._run()

    def _run(self) -> Tensor:
        # a caller's autocast would round what must stay float32
        with torch.autocast(self.device.type, enabled=False):
            return self.program(self)

    def start(self, tokens: Tensor, excluded: Tensor | None = None, chosen: Tensor | None = None) -> Pending:
        """Hand over a batch: ``tokens (u, t)``, ``excluded (u, e)``, ``chosen (u,)`` that fit the bucket."""
        slot = self._slots[self._next]
        self._next = (self._next + 1) % SLOTS
        if slot.done is not None:
            slot.done.synchronize()
        self._fill(self.tokens, slot.tokens, tokens, PAD)
        if excluded is not None:
            self._fill(self.excluded, slot.excluded, excluded, -1)
        if chosen is not None:
            self._fill(self.chosen, slot.chosen, chosen, 0)
        if self._graph is None:
            slot.found = self._run()
        else:
            self._graph.replay()
            slot.found.copy_(self._found, non_blocking=True)
            slot.done = slot.done or torch.cuda.Event()
            slot.done.record()
        return Pending(slot, len(tokens))

    @staticmethod
    def _fill(static: Tensor, host: Tensor, given: Tensor, rest: int) -> None:
        inside = tuple(slice(size) for size in given.shape)
        if given.is_cuda:
            static.fill_(rest)
            static[inside] = given.to(static.dtype)
            return
        array = host.numpy()
        if array.shape != given.shape:
            array.fill(rest)
        array[inside] = given.numpy()
        static.copy_(host, non_blocking=True)


def _host(like: Tensor, pinned: bool) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype, pin_memory=pinned)
