"""A trie in buffers of fixed address, with room to grow, and what masks need to know of it.

A captured graph reads the addresses and sizes that it was captured with. `StaticIndex` therefore keeps each
array of the trie in a larger buffer; a changed catalogue is copied into it, and only one that outgrows a
buffer, a number of children or the range of a level's tokens makes new buffers (and new graphs) necessary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from catalex.decoding.trie import DeviceTrie

ROOM = 1.25
"""Capacity of a buffer over what it holds at first."""
NOWHERE = 2**31 - 1
"""Above every node number."""


@dataclass(frozen=True)
class StaticLevel:
    """One level.

    Attributes:
        tokens, starts: As in `catalex.decoding.trie`, int32, with room behind the last entry.
        edges: ``(nodes + 1,)`` int32 first leaf below each node; `NOWHERE` behind the last.
        fan_out: A power of two, at least the largest number of children.
        low, span: The level's tokens are in ``[low, low + span)``.
    """

    tokens: Tensor
    starts: Tensor
    edges: Tensor
    fan_out: int
    low: int
    span: int


class StaticIndex:
    """All levels, ``items`` (int32 item of each leaf) and ``leaf_of`` (int32 leaf of each item, or -1).

    Attributes:
        above: ``(room for nodes of all levels,)`` int32 node above each node, level after level.
        above_at: ``(L,)`` int32 where the nodes of each level begin in `above`.
    """

    def __init__(self, trie: DeviceTrie, device: torch.device) -> None:
        self.levels = tuple(
            StaticLevel(
                _room(len(level.tokens), device),
                _room(len(level.starts), device),
                torch.zeros(_capacity(len(level.tokens)) + 1, dtype=torch.int32, device=device),
                power_of_two(max(level.fan_out, 2)),
                int(level.tokens.min()) if len(level.tokens) else 1,
                int(level.tokens.max() - level.tokens.min()) + 1 if len(level.tokens) else 1,
            )
            for level in trie.levels
        )
        rooms = [len(level.tokens) for level in self.levels]
        self.above = torch.zeros(sum(rooms), dtype=torch.int32, device=device)
        self.above_at = torch.tensor([sum(rooms[:n]) for n in range(len(rooms))], device=device).int()
        self._above = self.above.split(rooms)
        self.items = _room(len(trie.items), device)
        self.leaf_of = _room(trie.size, device)
        self.device = device
        self.load(trie)

    def fits(self, trie: DeviceTrie) -> bool:
        """Whether `load` can take this state of the trie."""
        if len(trie.items) > len(self.items) or trie.size > len(self.leaf_of):
            return False
        return all(
            len(new.tokens) <= len(old.tokens)
            and new.fan_out <= old.fan_out
            and (
                len(new.tokens) == 0
                or (int(new.tokens.min()) >= old.low and int(new.tokens.max()) < old.low + old.span)
            )
            for old, new in zip(self.levels, trie.levels, strict=True)
        )

    def load(self, trie: DeviceTrie) -> None:
        """Copy a state of the trie that fits into the buffers."""
        self.size = trie.size
        edges = torch.arange(len(trie.items) + 1, dtype=torch.int32, device=trie.items.device)
        for old, new, above in zip(*map(reversed, (self.levels, trie.levels, self._above)), strict=True):
            old.tokens[: len(new.tokens)] = new.tokens.to(self.device)
            old.starts[: len(new.starts)] = new.starts.to(self.device)
            old.edges.fill_(NOWHERE)
            old.edges[: len(edges)] = edges.to(self.device)
            edges = edges[new.starts.long()]
            children = new.starts.diff().long()
            parents = torch.arange(len(children), dtype=torch.int32, device=children.device)
            above[: len(new.tokens)] = parents.repeat_interleave(children).to(self.device)
        self.items[: len(trie.items)] = trie.items.to(self.device)
        self.leaf_of.fill_(-1)
        leaves = torch.arange(len(trie.items), dtype=torch.int32, device=self.device)
        self.leaf_of[self.items[: len(trie.items)].long()] = leaves

    def widths(self, beam: int) -> list[int]:
        """Beams kept at each level: no more than there can be."""
        widths: list[int] = []
        for level in self.levels:
            widths.append(min(beam, (widths[-1] if widths else 1) * level.fan_out, len(level.tokens)))
        return widths


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below a positive number."""
    return 1 << (number - 1).bit_length()


def _room(count: int, device: torch.device) -> Tensor:
    return torch.zeros(_capacity(count), dtype=torch.int32, device=device)


def _capacity(count: int) -> int:
    return int(count * ROOM) + 64
