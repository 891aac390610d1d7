"""The search, slow and obvious: what the fast one is held against, and where to read what it computes.

Plain Python over lists and a dict of dicts; every log-probability comes from the model's training path
(teacher forcing), so that the step-wise decoder with its caches is tested too. Never used outside tests and
benchmarks.

Ties, here and in the fast search: prefixes of equal score by their tokens, ascending; complete identifiers of
equal score by item id, ascending.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

import torch

from catalex.models.t5 import PAD, T5

Identifier = tuple[int, ...]
Ranked = list[tuple[int, float]]
"""Pairs of item and log-probability, best first."""


@torch.no_grad()
def score_items(model: T5, history: Sequence[int], identifiers: Sequence[Identifier]) -> list[float]:
    """Log-probability of every identifier after `history`: teacher-forced, over the whole vocabulary."""
    scores = []
    for identifier in identifiers:
        logits = model(torch.tensor([history]), torch.tensor([identifier]))[0]  # (L, V)
        each = logits.double().log_softmax(dim=-1)
        scores.append(sum(float(each[level, token]) for level, token in enumerate(identifier)))
    return scores


def rank_exhaustively(
    model: T5,
    history: Sequence[int],
    identifiers: Sequence[Identifier],
    k: int,
    allowed: Container[int] | None = None,
) -> Ranked:
    """The `k` best of all identifiers; item i has ``identifiers[i]``."""
    pairs = enumerate(score_items(model, history, identifiers))
    kept = [(item, score) for item, score in pairs if allowed is None or item in allowed]
    return sorted(kept, key=lambda pair: (-pair[1], pair[0]))[:k]


@torch.no_grad()
def reference_beam_search(
    model: T5,
    history: Sequence[int],
    identifiers: Sequence[Identifier],
    beam: int,
    k: int,
    allowed: Container[int] | None = None,
) -> Ranked:
    """The `k` best items that a search with `beam` prefixes at each level finds."""
    root: dict[int, Any] = {}
    for item, identifier in enumerate(identifiers):
        if allowed is None or item in allowed:
            node = root
            for token in identifier[:-1]:
                node = node.setdefault(token, {})
            node[identifier[-1]] = item
    if not root:
        return []
    beams: list[tuple[float, Identifier, Any]] = [(0.0, (), root)]
    for _ in identifiers[0]:
        children = []
        for score, prefix, node in beams:
            # the label at the newest position is a placeholder: no logit depends on its own label
            logits = model(torch.tensor([history]), torch.tensor([[*prefix, PAD]]))[0, -1]
            each = logits.double().log_softmax(dim=-1).tolist()
            children += [(score + each[token], (*prefix, token), child) for token, child in node.items()]
        complete = not isinstance(children[0][2], dict)
        children.sort(key=lambda child: (-child[0], child[2] if complete else child[1]))
        beams = children[:beam]
    return [(item, score) for score, _, item in beams[:k]]
