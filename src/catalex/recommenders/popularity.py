"""Popularity: the same list for everyone, by number of training interactions. The floor of every table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from catalex.artifacts import read_arrays, read_json, write_arrays, write_json
from catalex.data.histories import Cases, Histories
from catalex.data.histories import popularity as count_interactions
from catalex.errors import user_error
from catalex.evaluation.metrics import ndcg_at
from catalex.options import Options
from catalex.recommenders.base import Ranking, RecommenderDomain, ScoringRecommender
from catalex.types import JSON, Floats, Ints

CONFIG_FILE = "config.json"
MODEL_FILE = "model.safetensors"


class PopularityOptions(Options):
    """Nothing to choose."""


class Popularity(ScoringRecommender):
    """Scores each item by its training interactions.

    Attributes:
        counts: ``(N,)`` training interactions of each item, once fitted.
        split_ids: The split it was fitted on, by domain.
    """

    Options: ClassVar[type[Options]] = PopularityOptions
    seeded = False

    def __init__(self, options: PopularityOptions | None = None) -> None:
        self.options = options or PopularityOptions()
        self.counts: Ints = np.zeros(0, np.int64)
        self.split_ids: dict[str, str] = {}

    def fit(
        self,
        domains: Sequence[RecommenderDomain],
        *,
        seed: int,
        device: str,
        partial: Path | None = None,
    ) -> Mapping[str, JSON]:
        """Count. `seed`, `device` and `partial` change nothing."""
        domain = only_domain(domains, "popularity")
        self.counts = count_interactions(domain.training, domain.items)
        self.split_ids = {domain.name: domain.split_id}
        return {"valid_ndcg@10": validation_ndcg(self, domain.validation), "parameters": 0}

    def score(self, histories: Histories) -> Floats:
        return np.tile(self.counts.astype(np.float32), (len(histories), 1))

    def recommend(self, histories: Histories, k: int, excluded: Histories | None = None) -> Ranking:
        """One ranking, repeated for each history, unless something is excluded."""
        if excluded is not None:
            return super().recommend(histories, k, excluded)
        best = self._best(self.counts.astype(np.float32)[None], k)
        return Ranking(np.tile(best.items, (len(histories), 1)), np.tile(best.scores, (len(histories), 1)))

    def ranks(self, cases: Cases, k: int, excluded: Histories | None = None) -> Ints:
        """Items at least as popular as the target, the target included."""
        if excluded is not None:
            return super().ranks(cases, k, excluded)
        ascending = np.sort(self.counts)
        below = np.searchsorted(ascending, self.counts[cases.targets], side="left")
        return (len(ascending) - below).astype(np.int64)

    def save(self, folder: Path) -> None:
        write_arrays(folder / MODEL_FILE, {"counts": self.counts})
        write_json(folder / CONFIG_FILE, {"name": "popularity", "split_ids": self.split_ids})

    @classmethod
    def load(cls, folder: Path) -> Self:
        config = read_json(folder / CONFIG_FILE)
        model = cls()
        model.counts = read_arrays(folder / MODEL_FILE)["counts"]
        model.split_ids = config["split_ids"]
        return model


def only_domain(domains: Sequence[RecommenderDomain], name: str) -> RecommenderDomain:
    """The single domain that a recommender over item ids learns from.

    Raises:
        CatalexError: When there are none or several: item ids of two catalogues mean different things.
    """
    if len(domains) != 1:
        raise user_error(
            f"recommender {name!r} learns from one domain, because item ids mean nothing elsewhere",
            value=[domain.name for domain in domains],
            allowed="exactly one domain",
            remedy="fit it on the target domain, or use a recommender over identifiers",
        )
    return domains[0]


def validation_ndcg(recommender: ScoringRecommender, validation: Cases) -> float:
    """NDCG@10 of the full ranking on the validation cases; 0 when there are none."""
    values = ndcg_at(recommender.ranks(validation, 10), 10)
    return float(values.mean()) if len(values) else 0.0
