"""Which nodes of a trie a request may enter: item masks, and a few excluded items.

A node is open when an allowed item lies below it. For a mask of N items that takes a pass over all leaves
(`open_nodes`), so a mask that many requests share (a category, what is in stock) is best prepared once. For a
request that only excludes a few items, seen ones for example, only their own ancestors can be closed
(`closed_nodes`): the cost depends on their number and not on N.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from catalex.decoding.trie import ABSENT, DeviceTrie
from catalex.errors import user_error

NOWHERE = 2**31 - 1
"""Stands for a leaf that there is not; after every leaf in order."""


FEW = 512
"""Excluded items up to which looking at their ancestors is cheaper than preparing a mask."""


@dataclass(frozen=True)
class OpenNodes:
    """What an item mask allows, for one state of a trie; of one request for all, or of each of B.

    Attributes:
        levels: For each level ``(1 or B, nodes)`` bool.
        counts: ``(1 or B, leaves + 1)`` int32 allowed leaves before each leaf.
        index: The state of the trie that the mask was prepared for.
    """

    levels: tuple[Tensor, ...]
    counts: Tensor
    index: DeviceTrie

    def closed(self, depth: int, nodes: Tensor, users: int) -> Tensor:
        """``(B, n)`` whether each of ``nodes (B * n,)`` of a level may not be entered."""
        level = self.levels[depth]
        if len(level) == 1:
            return ~level[0].index_select(0, nodes).view(users, -1)
        return ~level.gather(1, nodes.view(users, -1).long())

    def take(self, users: Tensor) -> OpenNodes:
        """The masks of some requests."""
        if len(self.counts) == 1:
            return self
        levels = tuple(level.index_select(0, users) for level in self.levels)
        return OpenNodes(levels, self.counts.index_select(0, users), self.index)


def open_nodes(index: DeviceTrie, allowed: Tensor) -> OpenNodes:
    """Prepare the item mask ``allowed (N,)`` or ``(B, N)`` bool, N the trie's size.

    Running sums of allowed leaves are taken at the borders between nodes; a node is open when the sums at its
    two borders differ. The borders of a level are some of the borders of the next.
    """
    leaves = (allowed if allowed.dim() == 2 else allowed.unsqueeze(0)).index_select(1, index.items)
    sums = counts = torch.nn.functional.pad(leaves.cumsum(1, dtype=torch.int32), (1, 0))
    levels: list[Tensor] = []
    for level in reversed(index.levels):
        levels.append(sums[:, 1:] > sums[:, :-1])
        sums = sums.index_select(1, level.starts)
    return OpenNodes(tuple(reversed(levels)), counts, index)


def few_excluded(allowed: Tensor) -> Tensor | None:
    """The items that ``allowed (N,)`` or ``(B, N)`` on a CPU excludes, ``(1 or B, E)``; None if many."""
    lines = [np.flatnonzero(~line) for line in allowed.reshape(-1, allowed.shape[-1]).numpy()]
    most = max(map(len, lines), default=0)
    if most > min(FEW, allowed.shape[-1] // 32):
        return None
    return exclusions(lines, len(lines), allowed.device)


@dataclass(frozen=True)
class ClosedNodes:
    """Nodes below which everything is excluded; for each level ``(B, E)`` int32, `ABSENT` for none.

    `parents` are the nodes above them, `places` their places among the parents' children.
    """

    parents: tuple[Tensor, ...]
    places: tuple[Tensor, ...]


def closed_nodes(index: DeviceTrie, excluded: Tensor, opened: OpenNodes | None) -> ClosedNodes:
    """The nodes that excluding the items ``excluded (B, E)`` int64 closes, of those in `opened` if given."""
    known = (excluded >= 0) & (excluded < index.size)
    leaves = index.leaves[excluded.where(known, 0)].where(known, ABSENT)
    gone = leaves < 0
    if opened is not None:
        counts = opened.counts.expand(len(excluded), -1)
        place = leaves.long().clamp(min=0)
        gone |= counts.gather(1, place + 1) == counts.gather(1, place)
    leaves = leaves.masked_fill(gone, NOWHERE).sort(dim=1).values
    leaves[:, 1:].masked_fill_(leaves[:, 1:] == leaves[:, :-1], NOWHERE)  # each leaf counts once
    leaves = leaves.sort(dim=1).values
    real = leaves != NOWHERE
    nodes = leaves.where(real, 0)  # at the level in turn, from the leaves upwards
    parents, places = [], []
    for depth in range(len(index.levels) - 1, -1, -1):
        level = index.levels[depth]
        begin, end = nodes, nodes + 1
        for below in index.levels[depth + 1 :]:
            begin, end = below.starts[begin.long()], below.starts[end.long()]
        below_all = end - begin
        if opened is not None:
            below_all = counts.gather(1, end.long()) - counts.gather(1, begin.long())
        inside = torch.searchsorted(leaves, end.contiguous()) - torch.searchsorted(leaves, begin.contiguous())
        above = torch.searchsorted(level.starts, nodes, right=True, out_int32=True) - 1
        closed = real & (inside == below_all)
        parents.append(above.masked_fill(~closed, ABSENT))
        places.append(nodes - level.starts[above.long()])
        nodes = above
    return ClosedNodes(tuple(reversed(parents)), tuple(reversed(places)))


def shut(dead: Tensor, nodes: Tensor, parents: Tensor, places: Tensor) -> None:
    """Mark children in ``dead (B, W, F)`` bool, in place.

    Args:
        nodes: ``(B, W)`` the node of each beam, those of living beams all different, of dead ones below -1.
        parents: ``(B, E)`` and `places` as in `ClosedNodes`.
    """
    width = dead.shape[2]
    ordered, order = nodes.sort(dim=1)
    place = torch.searchsorted(ordered, parents.long()).clamp_(max=nodes.shape[1] - 1)
    beam, found = order.gather(1, place), ordered.gather(1, place) == parents
    where = (beam * width + places).where(found, 0)  # what concerns no beam marks nothing
    dead.view(len(dead), -1).scatter_reduce_(1, where, found, "amax")


def exclusions(
    exclude: Tensor | Sequence[NDArray[Any] | Sequence[int]], users: int, device: torch.device
) -> Tensor:
    """``(users, E)`` int64 excluded items, filled with `ABSENT`, on `device`.

    Raises:
        CatalexError: When `exclude` is not one line of integers for each of the users.
    """
    if isinstance(exclude, Tensor):
        wrong = exclude.dim() != 2 or len(exclude) != users or exclude.is_floating_point()
        if wrong or exclude.dtype == torch.bool:
            raise user_error(
                "excluded items have the wrong type or shape",
                place="exclude",
                value=f"{exclude.dtype} {tuple(exclude.shape)}",
                allowed=f"integers ({users}, most excluded)",
            )
        return exclude.to(device, torch.long)
    if len(exclude) != users:
        raise user_error(
            "excluded items are given for another number of histories",
            place="exclude",
            value=len(exclude),
            allowed=f"{users}",
        )
    lines = [np.asarray(line, np.int64).reshape(-1) for line in exclude]
    lengths = np.array([len(line) for line in lines], np.int64)
    padded = np.full((users, int(lengths.max(initial=0))), ABSENT, np.int64)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = np.concatenate([np.zeros(0, np.int64), *lines])
    return torch.from_numpy(padded).to(device)
