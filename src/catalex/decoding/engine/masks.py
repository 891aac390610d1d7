"""Which items a request may not get: open nodes of whole masks, closed nodes of short lists.

A mask must act inside the search: a node is entered only when an item below it may come out, or beams would
be spent on nothing. Letters: B users, M masks, N item ids, E excluded items a user.

* `open_tokens` turns item masks (a category, what is in stock) into copies of the levels' tokens in which
  closed nodes have none, once for many requests: a search reads such a copy in place of the tokens, so a mask
  costs it nothing;
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
    """M item masks and each user's choice among them.

    Attributes:
        levels: For each level ``(M, room for nodes)``, see `open_tokens`.
        chosen: ``(B,)`` int32 the mask of each user.
    """

    levels: tuple[Tensor, ...]
    chosen: Tensor


@dataclass(frozen=True)
class Closed:
    """Nodes of a level that no search of their user may enter; each ``(B, E)`` int32, -1 where none."""

    node: Tensor
    parent: Tensor


def open_tokens(index: StaticIndex, allowed: Tensor) -> list[Tensor]:
    """For each level ``(M, room for nodes)`` the nodes' tokens, counted from the level's lowest; -1 at nodes
    without an item of ``allowed (M, N)`` bool below them. int16 where the tokens allow.

    Running sums of the allowed leaves differ at a node's two edges when one lies between them.
    """
    leaf = index.leaf_of[: allowed.shape[1]]
    leaves = torch.zeros(len(allowed), len(index.items) + 1, dtype=torch.int32, device=allowed.device)
    # leaf i is counted at place i + 1; an item without a leaf writes 0 to place 0
    leaves.scatter_(1, (leaf.long() + 1).expand_as(allowed), (allowed & (leaf >= 0)).int())
    counts = leaves.cumsum(1, dtype=torch.int32)
    found = []
    for level in index.levels:
        at = counts[:, level.edges.long().clamp(max=counts.shape[1] - 1)]
        tokens = (level.tokens - level.low).to(torch.int16 if level.span < 2**15 else torch.int32)
        found.append(torch.where(at[:, 1:] > at[:, :-1], tokens, -1))
    return found


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
