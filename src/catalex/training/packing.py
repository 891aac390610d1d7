"""Packing: examples of different lengths laid side by side, so that a batch holds hardly any padding.

Two layouts, one for each kind of machine:

- `groups`, for a CPU: examples ordered by length, those of equal length form one dense block. Nothing is
  padded; the number of operations grows with the number of different lengths, which costs a CPU little.
- `rows`, for a GPU: examples are put into rows of fixed length, several to a row, and attention stays inside
  an example by a mask. Shapes hardly vary, so that a whole step can be one CUDA graph.

Batches are stratified by length (`stratified`): each has the same share of every length, to one example. All
batches then cost the same, and rows pack alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from catalex.types import Ints

ROW = 64
"""Shortest row, in tokens: the tile of the attention kernels, and 20 items of 3 codes with their end."""


@dataclass(frozen=True)
class Packed:
    """Where the tokens of B examples go.

    Attributes:
        order: ``(B,)`` the examples in the order of their labels: by length, equal ones as they came.
        starts: ``(B,)`` place of the first token of each, in that order.
        lengths: ``(B,)`` tokens of each, in that order.
        size: M, places in all; those that no example takes are padding.
    """

    order: Ints
    starts: Ints
    lengths: Ints
    size: int

    @property
    def filled(self) -> float:
        """Share of the places that hold a token."""
        return float(self.lengths.sum()) / max(self.size, 1)

    def places(self) -> tuple[Ints, Ints]:
        """For each token its example ``(tokens,)``, as a row of `order`, and its place in the example."""
        example = np.repeat(np.arange(len(self.lengths)), self.lengths)
        ends = np.cumsum(self.lengths)
        return example, np.arange(len(example)) - np.repeat(ends - self.lengths, self.lengths)


def groups(lengths: Ints) -> tuple[Packed, Ints]:
    """Examples of `lengths` ``(B,)`` tokens back to back, by length; and ``(G, 2)`` count and length of each
    group."""
    order = np.argsort(lengths, kind="stable")
    ordered = lengths[order]
    ends = np.cumsum(ordered)
    widths, counts = np.unique(ordered, return_counts=True)
    packed = Packed(order, ends - ordered, ordered, int(ends[-1]) if len(ends) else 0)
    return packed, np.stack([counts, widths], axis=1)


def row_length(longest: int) -> int:
    """C, the smallest power of two that holds the longest example, `ROW` at least."""
    return max(ROW, 1 << (longest - 1).bit_length())


def rows(lengths: Ints, capacity: int, multiple: int | None = None) -> Packed:
    """Examples in rows of `capacity` tokens, none cut: first-fit decreasing, many equal rows at a time.

    A row is filled with the longest examples that still fit; the same filling is used for as many rows as
    there are examples for. Time is that of the number of different fillings, not of examples.

    Args:
        lengths: ``(B,)`` tokens of each example, `capacity` at most.
        capacity: C, tokens of a row.
        multiple: The number of rows is rounded up to a multiple of this, so that few shapes occur; left out,
            the power of two nearest below 1.5 % of the rows.
    """
    order = np.argsort(lengths, kind="stable")
    ordered = lengths[order]
    widths, counts = np.unique(ordered, return_counts=True)
    assert not len(widths) or widths[-1] <= capacity, "an example is longer than a row"
    taken = np.cumsum(counts) - counts  # next example of each length
    left = counts.tolist()
    sizes = widths.tolist()
    starts = np.zeros(len(ordered), np.int64)
    row, longest = 0, len(sizes) - 1
    while longest >= 0:
        if not left[longest]:
            longest -= 1
            continue
        filling, free = [], capacity
        for kind in range(longest, -1, -1):
            number = min(left[kind], free // sizes[kind])
            if number:
                filling.append((kind, number, capacity - free))
                free -= number * sizes[kind]
        times = min(left[kind] // number for kind, number, _ in filling)
        first = (row + np.arange(times))[:, None] * capacity
        for kind, number, offset in filling:
            placed = first + offset + np.arange(number) * sizes[kind]
            starts[taken[kind] : taken[kind] + times * number] = placed.ravel()
            taken[kind] += times * number
            left[kind] -= times * number
        row += times
    if multiple is None:
        multiple = 1 << max(0, int(row * 0.015)).bit_length() >> 1
    row = -(-row // max(multiple, 1)) * max(multiple, 1)
    return Packed(order, starts, ordered, row * capacity)


def stratified(lengths: Ints, random: np.random.Generator) -> Ints:
    """A random order ``(X,)`` of examples in which every stretch has its share of every length.

    Examples of one length are shuffled, then spread evenly over the whole, from a random beginning.
    """
    shuffled = random.permutation(len(lengths))
    order = shuffled[np.argsort(lengths[shuffled], kind="stable")]
    _, counts = np.unique(lengths, return_counts=True)
    within = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    begin = np.repeat(random.random(len(counts)), counts)
    spread = (within + begin) / np.repeat(counts, counts)
    found: Ints = order[np.argsort(spread, kind="stable")]
    return found


def cut(order: Ints, batch_size: int) -> list[Ints]:
    """Consecutive batches of at most `batch_size`, as few as possible, that differ by one example at most."""
    return np.array_split(order, max(1, -(-len(order) // batch_size))) if len(order) else []
