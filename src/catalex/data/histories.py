"""Histories of many users in flat arrays, and the evaluation cases that a split defines over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from catalex.artifacts import hash_array
from catalex.data.columns import TEST, TRAIN, VALID
from catalex.types import Ints


@dataclass(frozen=True)
class Histories:
    """Item sequences of U users, in time order, without padding.

    Attributes:
        offsets: ``(U + 1,)`` user `u` owns ``items[offsets[u]:offsets[u + 1]]``.
        items: ``(E,)`` item ids.
    """

    offsets: Ints
    items: Ints

    @classmethod
    def from_lists(cls, sequences: list[list[int]]) -> Self:
        """Pack Python lists, one a user."""
        lengths = np.fromiter((len(s) for s in sequences), dtype=np.int64, count=len(sequences))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        flat = [item for sequence in sequences for item in sequence]
        return cls(offsets, np.asarray(flat, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, user: int) -> Ints:
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    @property
    def lengths(self) -> Ints:
        """``(U,)`` number of items of each user."""
        return np.diff(self.offsets)

    def latest(self, count: int) -> Histories:
        """The last `count` items of each user."""
        lengths = np.minimum(self.lengths, count)
        return _gather(self.items, self.offsets[1:] - lengths, lengths)

    def padded(self, filling: int, width: int | None = None) -> Ints:
        """``(U, width)`` the items of each user, then `filling`; as wide as the longest when not told."""
        longest = int(self.lengths.max(initial=0)) if width is None else width
        rows = np.full((len(self), longest), filling, np.int64)
        rows[np.arange(longest) < self.lengths[:, None]] = self.items
        return rows

    def take(self, users: Ints) -> Histories:
        """The histories of `users` ``(B,)``, in that order."""
        return _gather(self.items, self.offsets[users], self.lengths[users])


def _gather(items: Ints, starts: Ints, lengths: Ints) -> Histories:
    """Histories that copy ``items[starts[i]:starts[i] + lengths[i]]``, without a Python loop."""
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    return Histories(offsets, items[np.repeat(starts, lengths) + within])


@dataclass(frozen=True)
class Cases:
    """Evaluation cases: predict `targets[i]` from `histories[i]`, all of a user's items before the target.

    Attributes:
        users: ``(B,)`` user ids of the domain, ascending, at most one case a user.
        histories: B histories.
        targets: ``(B,)`` item ids.
    """

    users: Ints
    histories: Histories
    targets: Ints

    def __len__(self) -> int:
        return len(self.users)

    @property
    def known(self) -> Histories:
        """The items that each user already has, but for the target where it is a repeat."""
        lengths = self.histories.lengths
        keep = self.histories.items != np.repeat(self.targets, lengths)
        counts = np.concatenate([np.zeros(1, np.int64), np.cumsum(keep)])
        return Histories(counts[self.histories.offsets], self.histories.items[keep])

    def take(self, rows: Ints) -> Cases:
        """The cases at `rows`."""
        return Cases(self.users[rows], self.histories.take(rows), self.targets[rows])


@dataclass(frozen=True)
class SplitHistories:
    """All interactions of a domain with the part (train, valid, test) of each.

    Within a user the parts follow each other in time, so training sequences are prefixes. The validation case
    of a user is the first interaction labelled valid, the test case the first labelled test (leave-one-out
    has one of each). A test history therefore contains the validation item.
    """

    all: Histories
    parts: Ints
    """``(E,)`` values TRAIN, VALID, TEST of `data.columns`."""

    @property
    def split_id(self) -> str:
        """Names this very split: a hash of the interactions and their parts."""
        return hash_array(self.all.offsets, self.all.items, self.parts)[:16]

    @property
    def training(self) -> Histories:
        """Training interactions only; every user keeps an entry, possibly empty."""
        keep = self.parts == TRAIN
        counts = np.concatenate([np.zeros(1, np.int64), np.cumsum(keep)])
        return Histories(counts[self.all.offsets], self.all.items[keep])

    @property
    def validation(self) -> Cases:
        """One case for each user with a validation interaction and a history."""
        return self._cases(VALID)

    @property
    def test(self) -> Cases:
        """One case for each user with a test interaction and a history."""
        return self._cases(TEST)

    def _cases(self, part: int) -> Cases:
        events = np.flatnonzero(self.parts == part)
        owners = np.searchsorted(self.all.offsets, events, side="right") - 1
        users, first = np.unique(owners, return_index=True)
        targets = events[first]
        lengths = targets - self.all.offsets[users]
        keep = lengths > 0
        users, targets, lengths = users[keep], targets[keep], lengths[keep]
        return Cases(
            users, _gather(self.all.items, self.all.offsets[users], lengths), self.all.items[targets]
        )


def popularity(training: Histories, items: int) -> Ints:
    """``(N,)`` count of each item's training interactions."""
    return np.bincount(training.items, minlength=items).astype(np.int64)
