"""A recommender of your own in one file: pairs of items that customers bought together, tried on the sample.

It learns for every two products how many customers bought both, and scores a product by the cosine of its
customers and those of the products of a history. The class is all that is needed; the rest trains it, saves
it, and prints its row beside a baseline's, as `catalex evaluate` would.

To have it in recipes, move the class to `src/catalex/recommenders/` and add a line to the table there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from pydantic import Field

from catalex import sample
from catalex.artifacts import read_arrays, read_json, write_arrays, write_json
from catalex.data.domain import Domain
from catalex.data.histories import Histories
from catalex.data.prepare import PrepareOptions, prepare
from catalex.evaluation.protocol import evaluate
from catalex.options import Options
from catalex.recommenders import make_recommender
from catalex.recommenders.base import Recommender, RecommenderDomain, ScoringRecommender
from catalex.recommenders.popularity import only_domain, validation_ndcg
from catalex.types import JSON, Floats


class TogetherOptions(Options):
    """What can be chosen."""

    fading: float = Field(default=0.7, gt=0, le=1)
    """Weight of an item of the history, relative to the one after it."""


class Together(ScoringRecommender):
    """Items that were bought by the same customers as those of the history, the latest counting most."""

    Options: ClassVar[type[Options]] = TogetherOptions
    seeded = False

    def __init__(self, options: TogetherOptions | None = None) -> None:
        self.options = options or TogetherOptions()
        self.cosines: Floats = np.zeros((0, 0), np.float32)
        self.split_ids: dict[str, str] = {}

    def fit(
        self,
        domains: Sequence[RecommenderDomain],
        *,
        seed: int,
        device: str,
        partial: Path | None = None,
    ) -> Mapping[str, JSON]:
        domain = only_domain(domains, "together")
        bought = np.zeros((len(domain.training), domain.items), np.float32)
        bought[np.repeat(np.arange(len(bought)), domain.training.lengths), domain.training.items] = 1
        lengths = np.maximum(np.linalg.norm(bought, axis=0), 1e-12)
        self.cosines = ((bought.T @ bought) / np.outer(lengths, lengths)).astype(np.float32)
        self.split_ids = {domain.name: domain.split_id}
        return {"valid_ndcg@10": validation_ndcg(self, domain.validation), "parameters": 0}

    def score(self, histories: Histories) -> Floats:
        ages = np.concatenate([np.arange(length)[::-1] for length in histories.lengths] or [np.zeros(0)])
        weights = np.float32(self.options.fading) ** ages.astype(np.float32)
        users = np.repeat(np.arange(len(histories)), histories.lengths)
        profile = np.zeros((len(histories), len(self.cosines)), np.float32)
        np.add.at(profile, (users, histories.items), weights)
        return profile @ self.cosines

    def save(self, folder: Path) -> None:
        write_arrays(folder / "model.safetensors", {"cosines": self.cosines})
        options = self.options.model_dump(mode="json")
        write_json(
            folder / "config.json", {"name": "together", "split_ids": self.split_ids, "options": options}
        )

    @classmethod
    def load(cls, folder: Path) -> Self:
        config = read_json(folder / "config.json")
        recommender = cls(TogetherOptions.parse(config["options"], str(folder / "config.json")))
        recommender.cosines = read_arrays(folder / "model.safetensors")["cosines"]
        recommender.split_ids = config["split_ids"]
        return recommender


def main() -> None:
    """Train it and a baseline on the packaged sample, and judge both on the test cases."""
    with tempfile.TemporaryDirectory() as scratch:
        name = sample.DOMAINS[0]
        block = {"source": "canonical", "options": {"folder": str(sample.path() / name)}}
        folder = Path(scratch) / name
        prepare(name, PrepareOptions.parse(block, name), folder)
        domain = Domain.load(folder)
        split = domain.sequences
        learned_from = RecommenderDomain(name, len(domain), split.training, split.validation, domain.split_id)
        systems: dict[str, Recommender] = {
            "together": Together(),
            "popularity": make_recommender({"name": "popularity"}, "here"),
        }
        for label, recommender in systems.items():
            recommender.fit([learned_from], seed=0, device="cpu")
            recommender.save(Path(scratch) / label)
            again = type(recommender).load(Path(scratch) / label)
            result = evaluate(again, split.test, system=label, domain=name, split_id=domain.split_id, seed=0)
            print(f"{label:10} Recall@10 {result.values('recall@10').mean():.4f} on {len(result):,} users")


if __name__ == "__main__":
    main()
