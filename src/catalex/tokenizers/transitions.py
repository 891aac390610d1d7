"""Likelihood of item-to-item transitions under an interpolated Witten-Bell model over code prefixes.

A judgement of identifiers that needs no training: how well do codes let a simple counting model carry over
what it saw of similar items? It ordered identifier sets as trained recommenders did, where reconstruction
error, collisions and entropy did not.

The model predicts the codes of the next item one by one. Level l is conditioned on the codes chosen before it
and on ever shorter prefixes of the last item's codes, from all L down to none. With ``n`` occurrences of a
context and ``T`` distinct continuations of it (Witten and Bell 1991)::

    P(c | context) = (count(context, c) + T P(c | shorter context)) / (n + T)

Below the empty context stands the catalogue itself: the share of the items under a prefix that continue with
c. Without any training pair every item thus has probability 1/N whatever its codes, so that values of
different identifier sets, lengths and codebook sizes can be compared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from catalex.data.histories import Cases, Histories
from catalex.quantize.usage import prefix_groups
from catalex.types import Codes, Doubles, Ints


@dataclass(frozen=True)
class TransitionLikelihood:
    """Mean log-likelihood of transitions, in nats.

    Attributes:
        item: Of the whole next identifier, averaged over the pairs. Items that share an identifier share its
            probability evenly.
        levels: Contribution of each level; they sum to `item`, up to the share of colliding items.
        uniform: Value of knowing nothing, ``-ln N``.
        pairs: Number of pairs judged.
    """

    item: float
    levels: tuple[float, ...]
    uniform: float
    pairs: int


def training_pairs(training: Histories) -> tuple[Ints, Ints]:
    """``(E',)`` each item and ``(E',)`` the item that follows it, within users."""
    inside = np.ones(max(len(training.items) - 1, 0), bool)
    ends = training.offsets[1:-1] - 1
    inside[ends[(ends >= 0) & (ends < len(inside))]] = False
    return training.items[:-1][inside], training.items[1:][inside]


def case_pairs(cases: Cases) -> tuple[Ints, Ints]:
    """``(B,)`` last history item and ``(B,)`` target of each case."""
    return cases.histories.items[cases.histories.offsets[1:] - 1], cases.targets


def transition_likelihood(codes: Codes, training: Histories, cases: Cases) -> TransitionLikelihood:
    """Learn the model from the training transitions and judge the transitions into the targets of `cases`.

    Args:
        codes: ``(N, L)`` identifiers of the catalogue.
        training: Training histories.
        cases: Validation cases.
    """
    levels = codes.shape[1]
    prefixes = [prefix_groups(codes, depth) for depth in range(levels + 1)]
    sources, targets = training_pairs(training)
    last, wanted = case_pairs(cases)
    logs = [
        np.log(_level(prefixes, level, (sources, targets), (last, wanted))).mean() if len(wanted) else 0.0
        for level in range(levels)
    ]
    sharing = np.bincount(prefixes[-1])[prefixes[-1]]
    split = float(np.log(sharing[wanted]).mean()) if len(wanted) else 0.0
    by_level = tuple(float(value) for value in logs)
    return TransitionLikelihood(
        sum(by_level) - split, by_level, float(-np.log(max(len(codes), 1))), len(wanted)
    )


def _level(prefixes: list[Ints], level: int, seen: tuple[Ints, Ints], asked: tuple[Ints, Ints]) -> Doubles:
    """``(B,)`` probability of the targets' code at `level`, given their codes before it and the last item."""
    catalogue = np.bincount(prefixes[level])
    following = np.bincount(prefixes[level + 1])
    before, after = prefixes[level], prefixes[level + 1]
    probability = following[after[asked[1]]] / catalogue[before[asked[1]]]
    for length in range(len(prefixes)):
        context = prefixes[length]
        probability = _interpolate(
            _paired(context[seen[0]], before[seen[1]]),
            after[seen[1]],
            _paired(context[asked[0]], before[asked[1]]),
            after[asked[1]],
            probability,
        )
    return probability


def _paired(one: Ints, other: Ints) -> Ints:
    """One integer for each pair of numbers below 2^31."""
    return (one << 31) + other


def _interpolate(contexts: Ints, nexts: Ints, asked: Ints, wanted: Ints, shorter: Doubles) -> Doubles:
    """One Witten-Bell step: counts of (context, next) mixed with the probabilities under the shorter
    context."""
    if not len(contexts):
        return shorter
    known, index, totals = np.unique(contexts, return_inverse=True, return_counts=True)
    events, counts = np.unique(_paired(index.ravel().astype(np.int64), nexts), return_counts=True)
    distinct = np.bincount(events >> 31, minlength=len(known))
    place, found = _find(known, asked)
    n = np.where(found, totals[place], 0)
    t = np.where(found, distinct[place], 0)
    spot, hit = _find(events, _paired(place, wanted))
    count = np.where(found & hit, counts[spot], 0)
    mixed: Doubles = (count + t * shorter) / np.maximum(n + t, 1)
    return np.where(found, mixed, shorter)


def _find(known: Ints, asked: Ints) -> tuple[Ints, Ints]:
    """Place of each asked number in the sorted `known`, and whether it is there."""
    place = np.searchsorted(known, asked).clip(max=len(known) - 1)
    return place.astype(np.int64), known[place] == asked
