"""Transitions: what came right after the last item in training, most often first. A strong and honest
baseline.

A first-order Markov chain without smoothing. On sparse catalogues it beats many trained models on NDCG, so
every comparison prints it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from catalex.artifacts import read_arrays, read_json, write_arrays, write_json
from catalex.data.histories import Histories
from catalex.data.histories import popularity as count_interactions
from catalex.options import Options
from catalex.recommenders.base import Ranking, RecommenderDomain, ScoringRecommender
from catalex.recommenders.popularity import CONFIG_FILE, MODEL_FILE, only_domain, validation_ndcg
from catalex.types import JSON, Floats, Ints


class TransitionsOptions(Options):
    """Nothing to choose."""


class Transitions(ScoringRecommender):
    """Scores item j after last item i by ``count(i -> j) + popularity(j) / (max popularity + 1)``.

    The second term is below 1: it orders items of equal count and the items that never followed i. A user
    without history is ranked by popularity. Pairs are consecutive training interactions of one user; repeats
    count.

    Attributes:
        rows: ``(N + 1,)`` pairs that start with item i are ``nexts[rows[i]:rows[i + 1]]``.
        nexts: Distinct following items of each item, ascending.
        counts: How often each pair occurred.
        popularity: ``(N,)`` training interactions of each item.
        split_ids: The split it was fitted on, by domain.
    """

    Options: ClassVar[type[Options]] = TransitionsOptions
    seeded = False

    def __init__(self, options: TransitionsOptions | None = None) -> None:
        self.options = options or TransitionsOptions()
        self.rows: Ints = np.zeros(1, np.int64)
        self.nexts: Ints = np.zeros(0, np.int64)
        self.counts: Ints = np.zeros(0, np.int64)
        self.popularity: Ints = np.zeros(0, np.int64)
        self.split_ids: dict[str, str] = {}

    def fit(
        self,
        domains: Sequence[RecommenderDomain],
        *,
        seed: int,
        device: str,
        partial: Path | None = None,
    ) -> Mapping[str, JSON]:
        """Count pairs. `seed`, `device` and `partial` change nothing."""
        domain = only_domain(domains, "transitions")
        n = domain.items
        owners = np.repeat(np.arange(len(domain.training)), domain.training.lengths)
        together = owners[1:] == owners[:-1]
        first, second = domain.training.items[:-1][together], domain.training.items[1:][together]
        pairs, self.counts = np.unique(first * n + second, return_counts=True)
        self.rows = np.searchsorted(pairs, np.arange(n + 1) * n).astype(np.int64)
        self.nexts = (pairs % n).astype(np.int64)
        self.popularity = count_interactions(domain.training, n)
        self.split_ids = {domain.name: domain.split_id}
        return {
            "valid_ndcg@10": validation_ndcg(self, domain.validation),
            "parameters": 0,
            "pairs": len(pairs),
        }

    def score(self, histories: Histories) -> Floats:
        scores = np.tile(self._popularity_scores(), (len(histories), 1))
        for row in range(len(histories)):
            pairs = self._pairs(histories[row])
            scores[row, self.nexts[pairs]] += self.counts[pairs]
        return scores

    def recommend(self, histories: Histories, k: int, excluded: Histories | None = None) -> Ranking:
        """As the base class does, sparing most items: only followers and the k most popular can win."""
        if excluded is not None:
            return super().recommend(histories, k, excluded)
        base = self._popularity_scores()
        popular = np.argsort(-base, kind="stable")[:k]
        ranking = Ranking.empty(len(histories), k)
        for row in range(len(histories)):
            pairs = self._pairs(histories[row])
            followers = self.nexts[pairs]
            candidates = np.union1d(followers, popular)
            own = base[candidates]
            own[np.searchsorted(candidates, followers)] += self.counts[pairs]
            order = np.argsort(-own, kind="stable")[:k]
            ranking.items[row, : len(order)] = candidates[order]
            ranking.scores[row, : len(order)] = own[order]
        return ranking

    def save(self, folder: Path) -> None:
        arrays = {
            "rows": self.rows,
            "nexts": self.nexts,
            "counts": self.counts,
            "popularity": self.popularity,
        }
        write_arrays(folder / MODEL_FILE, arrays)
        write_json(folder / CONFIG_FILE, {"name": "transitions", "split_ids": self.split_ids})

    @classmethod
    def load(cls, folder: Path) -> Self:
        config = read_json(folder / CONFIG_FILE)
        arrays = read_arrays(folder / MODEL_FILE)
        model = cls()
        model.rows, model.nexts, model.counts = arrays["rows"], arrays["nexts"], arrays["counts"]
        model.popularity = arrays["popularity"]
        model.split_ids = config["split_ids"]
        return model

    def _popularity_scores(self) -> Floats:
        """``(N,)`` the part of the score below 1."""
        share: Floats = (self.popularity / (self.popularity.max(initial=0) + 1)).astype(np.float32)
        return share

    def _pairs(self, history: Ints) -> slice:
        """Where the pairs that start with the last item of a history stand; nowhere for an empty one."""
        if not len(history):
            return slice(0, 0)
        return slice(int(self.rows[history[-1]]), int(self.rows[history[-1] + 1]))
