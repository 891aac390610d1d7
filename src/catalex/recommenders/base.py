"""The interface of recommenders: training sequences in, ranked items out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from catalex.data.histories import Cases, Histories
from catalex.errors import user_error
from catalex.options import Options
from catalex.tokenizers.vocabulary import Vocabulary
from catalex.types import JSON, Codes, Floats, Ints

NEEDS = ("identifiers", "vectors", "image_vectors", "attributes")
"""What a recommender can ask to know of the items, beside their ids."""

ABSENT = -1
"""Fills a ranking row that ends early: a catalogue can be smaller than the number of items asked for."""


@dataclass(frozen=True)
class RecommenderDomain:
    """What a recommender may learn from one domain, and the cases that choose its best epoch.

    Attributes:
        name: Name of the domain.
        items: N, number of items of the catalogue (also items that training never saw).
        training: Training histories.
        validation: Validation cases, used for early stopping only.
        split_id: The split all of this belongs to.
        identifiers: ``(N, L)`` codes of the items, unique by row.
        vectors: ``(N, D)`` frozen content vectors of the items.
        image_vectors: ``(N, D_v)`` vectors of the items' images; a row of zeros where an item has none.
        attributes: Attribute ids 0.. of each of the N items, such as categories; an item may have none.

    What a recommender does not name in `Recommender.needs` may be None.
    """

    name: str
    items: int
    training: Histories
    validation: Cases
    split_id: str
    identifiers: Codes | None = None
    vectors: Floats | None = None
    image_vectors: Floats | None = None
    attributes: Histories | None = None


@dataclass(frozen=True)
class Ranking:
    """The best items for each of B histories.

    Attributes:
        items: ``(B, k)`` item ids, best first, `ABSENT` after the end; never twice the same in a row.
        scores: ``(B, k)`` scores, non-increasing along a row; ``-inf`` where `items` is `ABSENT`.
    """

    items: Ints
    scores: Floats

    @classmethod
    def empty(cls, rows: int, k: int) -> Self:
        """`rows` rankings without an item, to be filled."""
        return cls(np.full((rows, k), ABSENT, np.int64), np.full((rows, k), -np.inf, np.float32))

    def ranks(self, targets: Ints) -> Ints:
        """``(B,)`` 1-based rank of each target ``(B,)`` in its row; 0 when it is not in the row."""
        hits = self.items == targets[:, None]
        return np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, 0).astype(np.int64)


def sampled(cases: Cases, count: int | None, random: np.random.Generator) -> Cases:
    """All cases, or `count` random ones in their order: user ids can be ordered by activity, so the first
    would mislead."""
    if count is None or len(cases) <= count:
        return cases
    return cases.take(np.sort(random.choice(len(cases), count, replace=False)))


def latest_items(histories: Histories, count: int) -> Histories:
    """The last `count` items of each history, for a model that has nothing to say without any.

    Raises:
        CatalexError: When a history is empty.
    """
    latest = histories.latest(count)
    if len(latest) and latest.lengths.min() == 0:
        raise user_error(
            "a history is empty", value=int(latest.lengths.argmin()), remedy="give at least one item"
        )
    return latest


def identifier_tokens(domain: RecommenderDomain, vocabulary: Vocabulary) -> Ints:
    """``(N, L)`` the items' identifiers in the tokens that a model reads and writes.

    Raises:
        CatalexError: When the domain has no identifiers, or they have another number of levels.
    """
    if domain.identifiers is None:
        raise user_error(
            "the recommender needs identifiers", place=domain.name, remedy="run 'catalex tokenize' first"
        )
    levels = vocabulary.space.levels
    if domain.identifiers.shape[1] != levels:
        raise user_error(
            "the identifiers have another number of levels",
            place=domain.name,
            value=domain.identifiers.shape[1],
            allowed=str(levels),
            remedy="use the tokenizer that the recommender was trained with",
        )
    return vocabulary.tokens(domain.identifiers)


class Recommender(ABC):
    """Trained on one or more domains, applied to one. Every entry of the table passes one behaviour kit."""

    Options: ClassVar[type[Options]]

    needs: ClassVar[frozenset[str]] = frozenset()
    """Which of `NEEDS` the domains must carry; pipelines load these and nothing else."""

    transfers: ClassVar[bool] = False
    """Whether it can start from weights of other domains, and be trained on several together."""

    seeded: ClassVar[bool] = True
    """Whether anything in it is random; where nothing is, one seed is enough."""

    split_ids: dict[str, str]
    """Split that training saw, by name of the domain; evaluation refuses another one. Saved with the rest."""

    @abstractmethod
    def fit(
        self, domains: Sequence[RecommenderDomain], *, seed: int, device: str, partial: Path | None = None
    ) -> Mapping[str, JSON]:
        """Train with early stopping on the validation cases of `domains`.

        Args:
            domains: Several domains only where the recommender can share parameters between them.
            seed: Fixes the result on one device.
            device: "cpu" or "cuda".
            partial: Folder for checkpoints; a killed run started again with it ends at the same result.

        Returns:
            Curves and facts for the report: at least ``valid_ndcg@10`` (best) and ``parameters``.
        """

    def start_from(self, folder: Path) -> None:
        """Begin the next `fit` from the weights of a saved recommender instead of random ones.

        Raises:
            CatalexError: When this recommender cannot (`transfers`), or the saved one is of another kind or
                size.
        """
        raise user_error(
            "this recommender knows the item ids of one catalogue only, so it cannot be transferred",
            place=folder,
            value=type(self).__name__,
            remedy="choose one that transfers, or set transfer.starts: [scratch]",
        )

    def to(self, device: str) -> Self:
        """Answer on "cpu" or "cuda" from now on. One without a network has nothing to move."""
        del device
        return self

    def bind(self, domain: RecommenderDomain) -> None:  # noqa: B027 - only models that outlive one catalogue need it
        """Make `domain` the catalogue that `recommend` answers from. Nothing is learned.

        Recommenders that were trained on item ids have one catalogue for ever, and ignore this.
        """

    @abstractmethod
    def recommend(self, histories: Histories, k: int, excluded: Histories | None = None) -> Ranking:
        """The `k` best items of the catalogue for each history.

        Independent of how histories are batched; equal scores are ordered by item id.

        Args:
            histories: B histories; their own items are ranked like all others.
            k: Items wanted.
            excluded: Items that may not come out, for each of the B histories; None for none.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write ``config.json`` and safetensors into `folder`."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""

    def ranks(self, cases: Cases, k: int, excluded: Histories | None = None) -> Ints:
        """``(B,)`` 1-based rank of each case's target; 0 when it is not among the first `k`, or excluded."""
        return self.recommend(cases.histories, k, excluded).ranks(cases.targets)


class ScoringRecommender(Recommender):
    """A recommender that scores every item of its catalogue."""

    @abstractmethod
    def score(self, histories: Histories) -> Floats:
        """``(B, N)`` a score for every item of the catalogue; larger is better."""

    BLOCK = 512
    """Histories scored at a time; bounds memory at BLOCK x N floats."""

    def recommend(self, histories: Histories, k: int, excluded: Histories | None = None) -> Ranking:
        blocks = [self._best(scores, k) for _, scores in self._blocks(histories, excluded)]
        if not blocks:
            return Ranking.empty(0, k)
        return Ranking(np.concatenate([b.items for b in blocks]), np.concatenate([b.scores for b in blocks]))

    def _blocks(self, histories: Histories, excluded: Histories | None) -> Iterator[tuple[Ints, Floats]]:
        """Rows and scores ``(b, N)`` of each block of histories; ``-inf`` for what is excluded."""
        for start in range(0, len(histories), self.BLOCK):
            rows = np.arange(start, min(start + self.BLOCK, len(histories)))
            scores = self.score(histories.take(rows))
            if excluded is not None:
                scores[cells(excluded.take(rows))] = -np.inf
            yield rows, scores

    @staticmethod
    def _best(scores: Floats, k: int) -> Ranking:
        """Top `k` of scores ``(B, N)``; ties go to the smaller item id, and ``-inf`` is no item."""
        count = min(k, scores.shape[1])
        order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        best = np.take_along_axis(scores, order, axis=1)
        fill = ((0, 0), (0, k - count))
        best = np.pad(best, fill, constant_values=-np.inf)
        order = np.pad(order, fill, constant_values=ABSENT)
        return Ranking(np.where(best == -np.inf, ABSENT, order).astype(np.int64), best)

    def ranks(self, cases: Cases, k: int, excluded: Histories | None = None) -> Ints:
        """Full ranking with pessimistic ties (spec: 1 + items scored higher + other items scored equal).

        `k` bounds nothing here: ranks beyond it are returned as they are.
        """
        found = np.zeros(len(cases), np.int64)
        for rows, scores in self._blocks(cases.histories, excluded):
            if np.isnan(scores).any():
                raise FloatingPointError("a recommender returned NaN scores")
            own = np.take_along_axis(scores, cases.targets[rows, None], axis=1)
            found[rows] = np.where(own[:, 0] == -np.inf, 0, (scores >= own).sum(axis=1))
        return found


def cells(excluded: Histories) -> tuple[Ints, Ints]:
    """Row and item of everything in `excluded`, to index scores ``(B, N)``."""
    return np.repeat(np.arange(len(excluded)), excluded.lengths), excluded.items
