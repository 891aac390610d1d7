"""All-prefix examples as packed batches: what `PrefixExamples` holds, laid out by `catalex.training.packing`.

The host decides where examples go (a millisecond a batch, in a thread that works one batch ahead); the
device, which holds all sequences as one stream of tokens, puts the tokens there. A batch is a function of
(seed, epoch, number), so working ahead changes no result.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from catalex.models.t5 import IGNORE, PAD
from catalex.training.distributed import process_count, process_index, share
from catalex.training.examples import PrefixExamples
from catalex.training.loop import Batch
from catalex.training.moving import moved
from catalex.training.packing import cut, groups, row_length, rows, stratified
from catalex.training.seeds import generator
from catalex.types import Ints

Layout = Literal["groups", "rows"]


class PackedExamples:
    """The examples of a `PrefixExamples` in stratified, packed batches.

    Every epoch has each example once, in ``ceil(X / batch_size)`` batches that differ by one example at most.
    """

    def __init__(self, examples: PrefixExamples, layout: Layout | None = None) -> None:
        """`layout` is `rows` on CUDA and `groups` elsewhere, if left out."""
        self.examples = examples
        table = examples.table
        on_cuda = table.tokens.device.type == "cuda"
        self.layout: Layout = layout or ("rows" if on_cuda else "groups")
        self.capacity = row_length(examples.max_history * table.levels + 1)
        specials = torch.tensor([table.eos, IGNORE], device=table.tokens.device)
        self.stream = torch.cat([table.tokens[examples.items].flatten(), specials]).to(torch.int32)
        """Tokens of all sequences, then the end and the label that is ignored."""
        self._worker: ThreadPoolExecutor | None = None
        self._next: tuple[int, Future[list[Ints]]] | None = None

    def plan(self, epoch: int) -> PackedBatches:
        """The batches of one epoch; a function of the seed and the epoch alone."""
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, "packing")
        if self._next is not None and self._next[0] == epoch:
            batches = self._next[1].result()
        else:
            batches = self._drawn(epoch)
        self._next = (epoch + 1, self._worker.submit(self._drawn, epoch + 1))
        return PackedBatches(self, batches, self._worker)

    def _drawn(self, epoch: int) -> list[Ints]:
        random = generator(self.examples.seed, "epoch", epoch)
        chosen = self.examples.mixture(random)
        lengths = (self.examples.targets - self.examples.starts)[chosen]
        return cut(chosen[stratified(lengths, random)], self.examples.batch_size)

    def laid_out(self, members: Ints, count: int) -> HostBatch:
        """Where the tokens of the examples `members` come from and go to.

        Args:
            members: Numbers of examples.
            count: B, rows of labels in layout `rows`; those beyond the members are ignored.
        """
        examples, levels = self.examples, self.examples.table.levels
        lengths = (examples.targets - examples.starts)[members] * levels + 1
        if self.layout == "groups":
            packed, widths = groups(lengths)
            count = len(members)
        else:
            packed, widths = rows(lengths, self.capacity), np.zeros((0, 2), np.int64)
        ordered = members[packed.order]
        spans = np.zeros((4, count), np.int64)
        spans[:, : len(ordered)] = (
            examples.starts[ordered] * levels,
            examples.targets[ordered] * levels,
            packed.starts,
            packed.lengths,
        )
        return HostBatch(spans, packed.size, widths)

    def placed(self, host: HostBatch) -> Batch:
        """The batch on the device: tokens gathered from the stream and scattered to their places."""
        device, levels = self.stream.device, self.examples.table.levels
        sent = moved(host.spans, device)
        sources, targets, starts, lengths = sent[:, :, None].unbind(0)  # each (B, 1)
        end = len(self.stream) - 2
        slot = torch.arange(self.capacity, device=device)
        source = torch.where(slot < lengths - 1, sources + slot, end)
        place = torch.where(
            slot < lengths, starts + slot, host.size
        ).flatten()  # one place too many for what is not
        tokens = torch.full((host.size + 1,), PAD, device=device)
        tokens.scatter_(0, place, self.stream[source].flatten().long())
        level = torch.arange(levels + 1, device=device)
        wanted = torch.where(level < levels, targets + level, end)
        labels = self.stream[torch.where(lengths > 0, wanted, end + 1)].long()
        batch: dict[str, Tensor] = {"tokens": tokens[:-1], "labels": labels}
        if self.layout == "groups":
            return batch | {"widths": torch.from_numpy(host.widths)}
        segments = torch.full((host.size + 1,), -1, dtype=torch.int32, device=device)
        example = torch.arange(len(lengths), dtype=torch.int32, device=device)
        segments.scatter_(0, place, example[:, None].expand(-1, self.capacity).flatten())
        spans = sent[2:].to(torch.int32)
        return batch | {
            "segments": segments[:-1].view(-1, self.capacity),
            "starts": spans[0],
            "lengths": spans[1],
        }


@dataclass(frozen=True)
class HostBatch:
    """A batch before it is on the device.

    Attributes:
        spans: ``(4, B)`` for each example the place of its history and of its target in the stream of tokens,
            its place in the batch, and its number of tokens (0: no example).
        size: M, places of the batch.
        widths: ``(G, 2)`` count and length of each group (layout `groups`).
    """

    spans: Ints
    size: int
    widths: Ints


class PackedBatches:
    """Packed batches of one epoch, each prepared while the one before is computed.

    Attributes:
        shared: True: a batch holds this process's share of the examples alone.
    """

    shared = True

    def __init__(self, packed: PackedExamples, batches: list[Ints], worker: ThreadPoolExecutor) -> None:
        self.packed, self.batches, self._worker = packed, batches, worker
        self._ahead: tuple[int, Future[HostBatch]] | None = None

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int, /) -> Batch:
        if self._ahead is not None and self._ahead[0] == index:
            host = self._ahead[1].result()
        else:
            host = self._prepared(index)
        if index + 1 < len(self.batches):
            self._ahead = (index + 1, self._worker.submit(self._prepared, index + 1))
        return self.packed.placed(host)

    def _prepared(self, index: int) -> HostBatch:
        largest = len(self.batches[0])  # array_split puts the longer ones first
        count = len(range(process_index(), largest, process_count()))
        return self.packed.laid_out(share(self.batches[index]), count)
