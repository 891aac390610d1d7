"""The one way a number comes about: all items ranked, all test users, item level, no leakage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from catalex.data.histories import Cases, Histories
from catalex.errors import user_error
from catalex.evaluation.results import Result
from catalex.progress import Track
from catalex.types import Ints

DEPTH = 10
"""Items kept of each ranking for coverage and popularity bias."""

CHUNK = 4096
"""Users ranked between two reports of progress. Recommenders batch as they like: it changes no rank."""


class RankedItems(Protocol):
    """The part of `recommenders.base.Ranking` that evaluation reads."""

    @property
    def items(self) -> Ints:
        """``(B, k)`` item ids, best first."""

    def ranks(self, targets: Ints) -> Ints:
        """``(B,)`` 1-based rank of each target in its row; 0 when absent."""


class Rankable(Protocol):
    """The part of `recommenders.base.Recommender` that evaluation, a layer below, needs."""

    @property
    def split_ids(self) -> Mapping[str, str]:
        """Split that training saw, by name of the domain."""

    def recommend(self, histories: Histories, k: int, excluded: Histories | None = None) -> RankedItems:
        """The `k` best items for each history, of those not excluded."""

    def ranks(self, cases: Cases, k: int, excluded: Histories | None = None) -> Ints:
        """``(B,)`` rank of each case's target, among the items not excluded."""


def evaluate(
    recommender: Rankable,
    cases: Cases,
    *,
    system: str,
    domain: str,
    split_id: str,
    seed: int,
    ks: Sequence[int] = (5, 10),
    depth: int = DEPTH,
    exclude_history: bool = False,
) -> Result:
    """Rank all items for every case.

    A recommender that can score every item is ranked over the whole catalogue with pessimistic ties (an item
    that scores like the target stands before it); a generative one by the place of the target in its list of
    ``max(ks, depth)`` items, at least ten.

    Args:
        recommender: Trained on the training part of the same split.
        cases: Test (or validation) cases of the domain.
        system: Name of the system in tables.
        domain: Name of the domain.
        split_id: `Domain.split_id` of the domain that `cases` were taken from.
        seed: Seed that the recommender was trained with.
        ks: List lengths to report.
        depth: Items of each ranking to keep.
        exclude_history: Leave the items that a user already has out of the user's ranking (the target never).
            Some public programs do so; the papers that this package follows do not.

    Raises:
        CatalexError: When the recommender was trained on another split (it may have seen the test
            interactions), or `ks` is not a list of positive numbers.
    """
    if not ks or min(ks) < 1:
        raise user_error(
            "list lengths must be positive", place="evaluate.ks", value=list(ks), allowed="for example 5, 10"
        )
    check_split(recommender, domain, split_id)
    k = max(*ks, depth, 10)
    scores_all = hasattr(recommender, "score")
    ranks, tops = [np.zeros(0, np.int64)], [np.zeros((0, depth), np.int64)]
    with Track(f"evaluate {system} on {domain}", total=len(cases), unit="users") as track:
        for start in range(0, len(cases), CHUNK):
            chunk = cases.take(np.arange(start, min(start + CHUNK, len(cases))))
            excluded = chunk.known if exclude_history else None
            ranking = recommender.recommend(chunk.histories, k, excluded)
            tops.append(ranking.items[:, :depth])
            ranks.append(
                recommender.ranks(chunk, k, excluded) if scores_all else ranking.ranks(chunk.targets)
            )
            track.advance(len(chunk))
    return Result(
        system,
        domain,
        split_id,
        seed,
        tuple(sorted(ks)),
        cases.users,
        cases.targets,
        np.concatenate(ranks),
        np.concatenate(tops),
    )


def check_split(recommender: Rankable, domain: str, split_id: str) -> None:
    """Refuse a recommender that learned from another split of `domain` than the cases come from.

    One that never learned from the domain (zero-shot) cannot have seen its test interactions.

    Raises:
        CatalexError: When the recommender was trained on `domain` with another split.
    """
    seen = recommender.split_ids.get(domain, split_id)
    if seen != split_id:
        raise user_error(
            "the recommender was trained on another split, so it may have seen the test interactions",
            place=domain,
            value=seen,
            allowed=split_id,
            remedy="train it again on this split",
        )
