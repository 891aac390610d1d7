"""Memory that stays between searches on a CPU.

A search makes a few arrays of some hundred kilobytes and drops them at its end. The C library then gives the
top of its heap back to the system, and the next search pays for every page anew: a tenth of the time of a
single request. Products are therefore written into buffers that a search borrows and the next one finds.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

LARGEST = 4 << 20
"""Bytes of a product up to which its buffer is kept; a larger one is allocated as ever."""

MOST = 4
"""Searches at a time whose buffers are kept."""


class Memory:
    """The buffers of one search at a time. A product lives until its place is written again."""

    def __init__(self) -> None:
        self._buffers: dict[Hashable, Tensor] = {}

    def product(self, left: Tensor, right: Tensor, place: Hashable) -> Tensor:
        """``left (n, i) @ right (i, m)``, kept at `place`."""
        rows, columns = len(left), right.shape[1]
        size = rows * columns
        if left.device.type != "cpu" or size * left.element_size() > LARGEST:
            return left @ right
        buffer = self._buffers.get(place)
        if buffer is None or len(buffer) < size or buffer.dtype != left.dtype:
            with torch.inference_mode(False):  # a tensor made within could not be written to without
                buffer = self._buffers[place] = torch.empty(size, dtype=left.dtype)
        return torch.mm(left, right, out=buffer[:size].view(rows, columns))


_free: list[Memory] = []


@contextmanager
def borrowed() -> Iterator[Memory]:
    """Buffers for one search, which no other search has meanwhile."""
    try:
        memory = _free.pop()
    except IndexError:
        memory = Memory()
    try:
        yield memory
    finally:
        if len(_free) < MOST:
            _free.append(memory)
