"""Which items a request may not get: open nodes of whole masks, closed nodes of short lists.

A mask must act inside the search: a node is entered only when an item below it may come out, or beams would
be spent on nothing. Letters: B users, M masks, N item ids, E excluded items a user.

* `open_nodes` turns item masks (a category, what is in stock) into node masks, once for many requests;
* `closed_nodes` finds the few nodes that a user's excluded items close altogether, inside the captured graph;
  the search then sets their logits to -inf, so nothing is looked up for the thousands of other candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from catalex.decoding.engine.index import StaticIndex


@dataclass(frozen=True)
class Masks:
    """Node masks of M item masks and each user's choice among them.

    Attributes:
        levels: For each level ``(M, room for nodes)`` uint8, 1 where a node may be entered.
        chosen: ``(B,)`` int32 the mask of each user.
    """

    levels: tuple[Tensor, ...]
    chosen: Tensor


@dataclass(frozen=True)
class Closed:
    """Nodes of a level that no search of their user may enter; each ``(B, E)`` int32, -1 where none."""

    node: Tensor
    parent: Tensor


def open_nodes(index: StaticIndex, allowed: Tensor) -> list[Tensor]:
    """For each level ``(M, room for nodes)`` uint8 of ``allowed (M, N)`` bool: 1 over an allowed item.

    Running sums of the allowed leaves differ at a node's two edges when one lies between them.
    """
    leaf = index.leaf_of[: allowed.shape[1]]
    leaves = torch.zeros(len(allowed), len(index.items) + 1, dtype=torch.int32, device=allowed.device)
    # leaf i is counted at place i + 1; an item without a leaf writes 0 to place 0
    leaves.scatter_(1, (leaf.long() + 1).expand_as(allowed), (allowed & (leaf >= 0)).int())
    counts = leaves.cumsum(1, dtype=torch.int32)
    masks = []
    for level in index.levels:
        at = counts[:, level.edges.long().clamp(max=counts.shape[1] - 1)]
        masks.append((at[:, 1:] > at[:, :-1]).to(torch.uint8).contiguous())
    return masks


def closed_nodes(index: StaticIndex, excluded: Tensor) -> list[Closed]:
    """The nodes of each level whose items are all among a user's ``excluded (B, E)`` int64 item ids.

    Ids that are no item's, such as `ABSENT` for padding, are ignored, and so are repetitions.
    """
    known = (excluded >= 0) & (excluded < len(index.leaf_of))
    leaf = index.leaf_of[excluded.where(known, 0)].where(known, -1)
    first = leaf.unsqueeze(2) == leaf.unsqueeze(1)
    counted = (leaf >= 0) & ~first.tril(-1).any(2)
    closed: list[Closed] = []
    parent = torch.zeros_like(leaf)
    for level in index.levels:
        node = (torch.searchsorted(level.edges, leaf.contiguous(), right=True, out_int32=True) - 1).clamp(
            min=0
        )
        together = (node.unsqueeze(2) == node.unsqueeze(1)) & counted.unsqueeze(1)
        leaves = level.edges[node.long() + 1] - level.edges[node.long()]
        shut = counted & (together.sum(2) == leaves)
        closed.append(Closed(node.where(shut, -1), parent.where(shut, -1)))
        parent = node
    return closed
