"""All-prefix training examples of many domains, as batches of tokens made on the device.

For a training sequence s_1..s_n every prefix is an example: history s_max(1,j-S)..s_(j-1), target s_j, for
j = 2..n (spec of TIGER's lineage; "sliding window augmentation"). Sequences stay flat on the device; a batch
is a gather. Short histories get their own, narrower batches, so that little is computed on padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from catalex.data.histories import Histories
from catalex.models.t5 import IGNORE, PAD
from catalex.training.loop import Batch
from catalex.training.seeds import generator
from catalex.types import Ints

CLASSES = (0.25, 0.5, 1.0)
"""Length classes as shares of the longest history: 5, 10 and 20 items for the usual 20."""


class TokenTable:
    """Tokens of every item of several catalogues under one numbering, and histories written with them.

    Attributes:
        tokens: ``(N + 1, L)`` on the device; the last row is padding.
    """

    def __init__(self, catalogues: Sequence[Ints], eos: int, device: str) -> None:
        self.offsets = np.cumsum([0, *(len(c) for c in catalogues)])
        padding = np.full((1, catalogues[0].shape[1]), PAD, dtype=np.int64)
        self.tokens = torch.from_numpy(np.concatenate([*catalogues, padding])).to(device)
        self.eos = eos
        self.levels = self.tokens.shape[1]

    @property
    def pad(self) -> int:
        """The item number that stands for no item."""
        return len(self.tokens) - 1

    def width(self, items: int) -> int:
        """T, tokens of a history of `items` items and the end token, rounded up to a multiple of 8."""
        return -(-(items * self.levels + 1) // 8) * 8

    def write(self, items: Tensor, lengths: Tensor) -> Tensor:
        """Token rows ``(B, T)`` of histories: right-padded item numbers ``(B, S)`` and lengths ``(B,)``."""
        rows, slots = items.shape
        text = items.new_full((rows, self.width(slots)), PAD)
        text[:, : slots * self.levels] = self.tokens[items].flatten(1)
        return text.scatter_(1, (lengths * self.levels)[:, None], self.eos)


@dataclass(frozen=True)
class PrefixExamples:
    """Every prefix of every training sequence of one or several domains.

    Attributes:
        table: Tokens of all items.
        items: ``(E,)`` item numbers of all training sequences, on the device.
        starts, targets: ``(X,)`` positions in `items` where each example's history begins, and where its
            target stands.
        domains: ``(X,)`` number of the domain of each example.
    """

    table: TokenTable
    items: Tensor
    starts: Ints
    targets: Ints
    domains: Ints
    max_history: int
    batch_size: int
    seed: int
    temperature: float

    @classmethod
    def build(
        cls,
        table: TokenTable,
        histories: Sequence[Histories],
        *,
        max_history: int,
        batch_size: int,
        seed: int,
        temperature: float = 1.0,
    ) -> PrefixExamples:
        """Enumerate the examples of training histories, one for each of the table's catalogues in order.

        Args:
            temperature: 1 mixes domains in proportion to their examples; towards infinity, equally: a domain
                with n examples is drawn n**(1/temperature) (normalised) of the time. The number of examples
                an epoch stays.
        """
        flat, starts, targets, domains, base = [], [], [], [], 0
        for number, sequence in enumerate(histories):
            flat.append(sequence.items + table.offsets[number])
            first = np.repeat(sequence.offsets[:-1], sequence.lengths)
            places = np.arange(len(sequence.items))
            usable = places > first  # the first item of a sequence has no history
            begin = np.maximum(first, places - max_history)[usable]
            starts.append(begin + base)
            targets.append(places[usable] + base)
            domains.append(np.full(usable.sum(), number))
            base += len(sequence.items)
        items = torch.from_numpy(np.concatenate(flat).astype(np.int64)).to(table.tokens.device)
        return cls(
            table,
            items,
            np.concatenate(starts),
            np.concatenate(targets),
            np.concatenate(domains),
            max_history,
            batch_size,
            seed,
            temperature,
        )

    def __len__(self) -> int:
        return len(self.targets)

    def plan(self, epoch: int) -> EpochBatches:
        """The batches of one epoch; a function of the seed and the epoch alone."""
        random = generator(self.seed, "epoch", epoch)
        chosen = self.mixture(random)
        lengths = (self.targets - self.starts)[chosen]
        classes = sorted({max(1, round(self.max_history * share)) for share in CLASSES})
        batches: list[tuple[int, Ints]] = []
        carried = np.zeros(0, np.int64)
        shortest = 0
        for slots in classes:
            members = np.concatenate([carried, chosen[(lengths > shortest) & (lengths <= slots)]])
            members = random.permutation(members)
            whole = len(members) // self.batch_size * self.batch_size
            batches += [(slots, part) for part in members[:whole].reshape(-1, self.batch_size)]
            # a rest too small for a batch joins the next longer class
            carried, shortest = members[whole:], slots
        if len(carried):
            batches.append((classes[-1], carried))
        order = random.permutation(len(batches))
        return EpochBatches(self, [batches[i] for i in order])

    def mixture(self, random: np.random.Generator) -> Ints:
        """Examples of one epoch: all of them, or domains re-weighted by the temperature."""
        everything = np.arange(len(self))
        if self.temperature == 1.0:
            return everything
        counts = np.bincount(self.domains)
        weights = counts ** (1 / self.temperature)
        wanted = np.floor(weights / weights.sum() * len(self)).astype(np.int64)
        chosen = []
        for number, count in enumerate(wanted):
            members = everything[self.domains == number]
            repeats = [random.permutation(members) for _ in range(-(-int(count) // len(members)))]
            chosen.append(np.concatenate(repeats)[:count])
        return np.concatenate(chosen)

    def batch(self, slots: int, examples: Ints) -> Batch:
        """Tokens ``(B, T)`` and labels ``(B, L + 1)`` of `examples`; ignored rows fill the last batch."""
        device = self.items.device
        rows = np.resize(examples, self.batch_size)
        both = torch.from_numpy(np.stack([self.starts[rows], self.targets[rows]])).to(
            device, non_blocking=True
        )
        starts, targets = both[0], both[1]
        lengths = targets - starts
        places = torch.arange(slots, device=device)
        inside = places < lengths[:, None]
        items = torch.where(
            inside, self.items[(starts[:, None] + places).clamp(max=len(self.items) - 1)], self.table.pad
        )
        labels = torch.cat(
            [self.table.tokens[self.items[targets]], targets.new_full((len(rows), 1), self.table.eos)], dim=1
        )
        if len(examples) < self.batch_size:
            labels[len(examples) :] = IGNORE
        return {"tokens": self.table.write(items, lengths), "labels": labels}


@dataclass(frozen=True)
class EpochBatches:
    """Planned batches of one epoch: pairs of a length class and example numbers."""

    examples: PrefixExamples
    batches: list[tuple[int, Ints]]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int, /) -> Batch:
        return self.examples.batch(*self.batches[index])
