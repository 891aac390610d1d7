"""Training examples of the models that score all items, cut and batched without Python work per example.

Three plans, by what a model may see: `WindowPlan` predicts at every position (causal models), `PrefixPlan` at
the end of every prefix (models that look both ways, where the target has to be outside), `MaskPlan` at masked
positions. Batches have the keys that `models.sequential.base.SequenceModel.loss` reads. Every batch is full:
the last one of an epoch wraps round to the first examples.

Shape letters: B batch, S items of a window, P chosen positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from catalex.data.histories import Histories
from catalex.training.distributed import process_count
from catalex.training.loop import Batch
from catalex.training.moving import moved
from catalex.training.seeds import generator
from catalex.types import Bools, Ints

REDRAWS = 20
"""Times that a negative the user already has is drawn again; then it stays (a user may have all items)."""


@dataclass(frozen=True)
class Windows:
    """Training sequences cut to S positions.

    Attributes:
        histories: ``(windows, S)`` input items, padded on the right with N.
        targets: ``(windows, S)`` the item after each, -1 at padding.
        users: ``(windows,)`` whose sequence it is.
    """

    histories: Ints
    targets: Ints
    users: Ints

    def __len__(self) -> int:
        return len(self.histories)


def training_windows(training: Histories, length: int, items: int) -> Windows:
    """Cut every training sequence into adjacent windows of `length` positions, counted from its end.

    Each pair of neighbours of a sequence is a position of exactly one window, so none is lost and none counts
    twice; the oldest window of a long sequence may be short.

    Args:
        training: Training histories of U users.
        length: S, positions of a window.
        items: N, the padding id.
    """
    positions = np.maximum(training.lengths - 1, 0)
    rows, columns, source, users = _cut(training.offsets, positions, length)
    histories = np.full((len(users), length), items, np.int64)
    targets = np.full_like(histories, -1)
    histories[rows, columns] = training.items[source]
    targets[rows, columns] = training.items[source + 1]
    return Windows(histories, targets, users)


def item_windows(training: Histories, length: int, items: int) -> Ints:
    """``(windows, S)`` all training items of every user in adjacent windows counted from the end, padded on
    the right with N. Windows of a single item, from which nothing can be learned, are left out."""
    rows, columns, source, users = _cut(training.offsets, training.lengths, length)
    found = np.full((len(users), length), items, np.int64)
    found[rows, columns] = training.items[source]
    if length == 1:
        return found[:0]
    kept: Ints = found[found[:, 1] < items]
    return kept


def _cut(offsets: Ints, positions: Ints, length: int) -> tuple[Ints, Ints, Ints, Ints]:
    """Row, column and source of each of the `positions` ``(U,)`` of users, and the users of the rows."""
    window_counts = -(-positions // length)
    first_window = np.cumsum(window_counts) - window_counts
    owners = np.repeat(np.arange(len(positions)), positions)
    place = np.arange(len(owners)) - np.repeat(np.cumsum(positions) - positions, positions)
    chunk = (positions[owners] - 1 - place) // length
    column = place - np.maximum(positions[owners] - (chunk + 1) * length, 0)
    users = np.repeat(np.arange(len(positions)), window_counts)
    return first_window[owners] + chunk, column, offsets[owners] + place, users


class Negatives:
    """Uniform random items that a user has not in the training sequence.

    Args:
        training: Training histories.
        items: N.
    """

    def __init__(self, training: Histories, items: int) -> None:
        self.items = items
        owners = np.repeat(np.arange(len(training)), training.lengths)
        self.taken = np.unique(owners * items + training.items)

    def draw(self, users: Ints, random: np.random.Generator) -> Ints:
        """One item for each of `users`, of any shape."""
        drawn = random.integers(0, self.items, users.shape)
        for _ in range(REDRAWS):
            again = self._taken(users, drawn)
            if not again.any():
                break
            drawn[again] = random.integers(0, self.items, int(again.sum()))
        return drawn

    def _taken(self, users: Ints, drawn: Ints) -> Bools:
        keys = users * self.items + drawn
        place = np.minimum(np.searchsorted(self.taken, keys), len(self.taken) - 1)
        found: Bools = self.taken[place] == keys
        return found


class _Plan:
    """Rows of one epoch: a random order of `count` examples, in full batches."""

    def __init__(self, count: int, batch_size: int, seed: int, epoch: int, device: str) -> None:
        self.count, self.batch_size, self.seed, self.epoch, self.device = (
            count,
            batch_size,
            seed,
            epoch,
            device,
        )
        self.order = generator(seed, "epoch", epoch).permutation(count)
        self.list_positions = process_count() == 1

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def rows(self, index: int) -> Ints:
        """``(B,)`` numbers of the examples of a batch."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        numbers = np.arange(index * self.batch_size, (index + 1) * self.batch_size) % self.count
        rows: Ints = self.order[numbers]
        return rows

    def random(self, index: int) -> np.random.Generator:
        """Randomness of one batch, whatever was asked for before."""
        return generator(self.seed, "epoch", self.epoch, "batch", index)

    def on_device(self, batch: dict[str, Ints]) -> Batch:
        """The batch; with one process only the positions that have a target are listed, padded to a multiple
        of the batch size: few distinct shapes, and no work on padding. Several processes share the rows of a
        batch, so there all positions are kept."""
        if self.list_positions:
            real = np.flatnonzero(batch["targets"].ravel() >= 0)
            padding = -len(real) % self.batch_size
            batch["positions"] = np.pad(real, (0, padding))
            for name, fill in (("targets", -1), ("negatives", 0)):
                if name in batch:
                    batch[name] = np.pad(batch[name].ravel()[real], (0, padding), constant_values=fill)
        return {name: moved(value, self.device) for name, value in batch.items()}


class WindowPlan(_Plan):
    """The batches of one epoch: all windows in random order, every position with a target predicts it."""

    def __init__(
        self,
        windows: Windows,
        batch_size: int,
        seed: int,
        epoch: int,
        device: str,
        negatives: Negatives | None = None,
    ) -> None:
        super().__init__(len(windows), batch_size, seed, epoch, device)
        self.windows, self.negatives = windows, negatives

    def __getitem__(self, index: int) -> Batch:
        rows = self.rows(index)
        batch = {"histories": self.windows.histories[rows], "targets": self.windows.targets[rows]}
        if self.negatives is not None:
            users = np.broadcast_to(self.windows.users[rows, None], batch["targets"].shape)
            batch["negatives"] = self.negatives.draw(users, self.random(index))
        return self.on_device(batch)


class MaskPlan(_Plan):
    """The batches of one epoch of a masked model (BERT4Rec, Sun et al. 2019, section 3.6).

    Each item of a window is replaced by the mask with probability `ratio`, at least one of a window; a share
    `last` of the windows masks only the last item instead, as recommending does.

    Args:
        windows: From `item_windows`.
        items: N; N + 1 is the mask.
        ratio: Share of masked items.
        last: Share of windows that mask only their last item.
    """

    def __init__(
        self,
        windows: Ints,
        items: int,
        batch_size: int,
        seed: int,
        epoch: int,
        device: str,
        *,
        ratio: float,
        last: float,
    ) -> None:
        super().__init__(len(windows), batch_size, seed, epoch, device)
        self.windows, self.items, self.ratio, self.last = windows, items, ratio, last

    def __getitem__(self, index: int) -> Batch:
        windows, random = self.windows[self.rows(index)], self.random(index)
        real = windows < self.items
        ends = real.sum(axis=1) - 1
        rows = np.arange(len(windows))
        draws = np.where(real, random.random(windows.shape), 2.0)
        masked = draws < self.ratio
        masked[rows, draws.argmin(axis=1)] = True
        only_last = random.random(len(windows)) < self.last
        masked[only_last] = False
        masked[rows[only_last], ends[only_last]] = True
        return self.on_device(
            {
                "histories": np.where(masked, self.items + 1, windows),
                "targets": np.where(masked, windows, -1),
            }
        )


@dataclass(frozen=True)
class Prefixes:
    """Every prefix of every training sequence, cut to its latest S items, and the item that follows it.

    Attributes:
        items: ``(E,)`` items of all sequences, on the device.
        starts, targets: ``(X,)`` positions in `items` where a history begins, and where its target stands.
        users: ``(X,)`` whose sequence it is.
        length: S.
        padding: N.
    """

    items: Tensor
    starts: Ints
    targets: Ints
    users: Ints
    length: int
    padding: int

    @classmethod
    def build(cls, training: Histories, length: int, items: int, device: str) -> Prefixes:
        """Enumerate the prefixes of training sequences; `items` is N."""
        users = np.repeat(np.arange(len(training)), training.lengths)
        first = training.offsets[:-1][users]
        places = np.arange(len(users)) + int(training.offsets[0])
        usable = places > first  # the first item of a sequence has no history
        starts = np.maximum(first, places - length)[usable]
        flat = torch.from_numpy(training.items.astype(np.int64)).to(device)
        return cls(flat, starts, places[usable], users[usable], length, items)

    def __len__(self) -> int:
        return len(self.targets)


class PrefixPlan(_Plan):
    """The batches of one epoch: all prefixes in random order, each predicts the item after it."""

    def __init__(
        self, prefixes: Prefixes, batch_size: int, seed: int, epoch: int, negatives: Negatives | None = None
    ) -> None:
        super().__init__(len(prefixes), batch_size, seed, epoch, str(prefixes.items.device))
        self.prefixes, self.negatives = prefixes, negatives

    def __getitem__(self, index: int) -> Batch:
        rows, known = self.rows(index), self.prefixes
        starts, targets = moved(np.stack([known.starts[rows], known.targets[rows]]), self.device)
        lengths = targets - starts
        columns = torch.arange(known.length, device=lengths.device)
        places = (starts[:, None] + columns).clamp(max=len(known.items) - 1)
        histories = torch.where(columns < lengths[:, None], known.items[places], known.padding)
        batch = {"histories": histories, "lengths": lengths, "targets": known.items[targets]}
        if self.negatives is not None:
            drawn = self.negatives.draw(known.users[rows], self.random(index))
            batch["negatives"] = moved(drawn, self.device)
        return batch
