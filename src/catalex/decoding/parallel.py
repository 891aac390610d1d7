"""Search over a trie where all tokens of an identifier are predicted at once, each by itself (RecGPT).

The score of an item is the sum of the log-probabilities of its tokens, over the whole vocabulary and before
any mask, as in `beam_search`. As no token depends on another, a temperature of the softmax would multiply all
scores by one number and change no ranking.
"""

from __future__ import annotations

import torch
from torch import Tensor

from catalex.decoding.beam import Decoded, check_sizes, nothing_found
from catalex.decoding.masks import closed_nodes
from catalex.decoding.selection import Beams, select
from catalex.decoding.trie import ABSENT, Trie


@torch.no_grad()
def parallel_search(
    log_probabilities: Tensor, trie: Trie, *, beam: int, k: int, excluded: Tensor | None = None
) -> Decoded:
    """The `k` best items for each history; those of the whole catalogue where `beam` keeps every prefix.

    Args:
        log_probabilities: ``(B, L, V)`` float32 of each token of the next identifier.
        trie: The catalogue, with identifiers of L tokens.
        beam: Prefixes kept at each level, at least `k`.
        k: Items wanted.
        excluded: ``(B, E)`` int64 items that may not come out, `ABSENT` for none.

    Raises:
        CatalexError: When `k` is larger than `beam`, or a size is not positive.
    """
    check_sizes(beam, k)
    index = trie.to(log_probabilities.device)
    users = len(log_probabilities)
    found = nothing_found(users, k, log_probabilities.device)
    if users == 0 or len(index.items) == 0:
        return found
    closed = None if excluded is None else closed_nodes(index, excluded.to(log_probabilities.device), None)
    root = torch.zeros(users, 1, dtype=torch.int64, device=log_probabilities.device)
    beams = Beams(root, root, root.float(), root == 0)
    for depth, level in enumerate(index.levels):
        kept = beams.node.shape[1]
        width = min(beam, len(level.tokens), kept * level.fan_out)
        here = log_probabilities[:, depth, None].expand(-1, kept, -1)
        beams = select(index, depth, beams, here, width, closed=closed)
    count = min(k, beams.node.shape[1])
    found.items[:, :count] = beams.node.where(beams.alive, ABSENT)[:, :count]
    found.scores[:, :count] = beams.score[:, :count]
    return found
