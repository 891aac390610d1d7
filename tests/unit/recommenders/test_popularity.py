"""Popularity counts training interactions, ranks everyone alike, and reproduces the reference numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from catalex.data.columns import TEST, VALID
from catalex.data.histories import Cases, Histories, SplitHistories
from catalex.errors import CatalexError
from catalex.evaluation import evaluate, summary
from catalex.recommenders.base import Recommender, RecommenderDomain, ScoringRecommender
from catalex.recommenders.popularity import Popularity
from catalex.recommenders.transitions import Transitions

DATA = Path(__file__).resolve().parents[3] / "../shared/data"
TRAINING = Histories.from_lists([[0, 1, 1], [1, 2], [], [2, 4]])
CASES = Cases(np.arange(3), Histories.from_lists([[0], [1], [2]]), np.array([1, 3, 2]))


def domain(**changes) -> RecommenderDomain:
    return replace(RecommenderDomain("toys", 6, TRAINING, CASES, "split"), **changes)


def fitted() -> Popularity:
    model = Popularity()
    model.fit([domain()], seed=0, device="cpu")
    return model


def test_counts_and_order():
    assert fitted().counts.tolist() == [1, 3, 2, 0, 1, 0]
    assert fitted().recommend(CASES.histories, 5).items.tolist() == [[1, 2, 0, 4, 3]] * 3


def test_closed_forms_equal_the_base_class():
    model = fitted()
    for k in (2, 6, 9):
        fast, slow = (
            model.recommend(CASES.histories, k),
            ScoringRecommender.recommend(model, CASES.histories, k),
        )
        assert np.array_equal(fast.items, slow.items)
        assert np.array_equal(fast.scores, slow.scores)
    assert np.array_equal(model.ranks(CASES, 10), ScoringRecommender.ranks(model, CASES, 10))


def test_validation_metric():
    facts = Popularity().fit([domain()], seed=0, device="cpu")
    assert facts["valid_ndcg@10"] == pytest.approx(np.mean(1 / np.log2(np.array([1, 6, 2]) + 1)))


def test_save_and_load(tmp_path):
    model = fitted()
    model.save(tmp_path)
    again = Popularity.load(tmp_path)
    assert np.array_equal(again.score(CASES.histories), model.score(CASES.histories))
    assert again.split_ids == {"toys": "split"}


@pytest.mark.parametrize("domains", [[], [domain(), domain(name="yelp")]])
def test_one_domain_only(domains):
    with pytest.raises(CatalexError, match="'popularity' learns from one domain"):
        Popularity().fit(domains, seed=0, device="cpu")


REFERENCE = {
    ("popularity", "beauty"): (0.0064, 0.0106, 0.0037, 0.0051),
    ("popularity", "office"): (0.0004, 0.0006, 0.0002, 0.0002),
    ("transitions", "beauty"): (0.0501, 0.0656, 0.0376, 0.0426),
    ("transitions", "office"): (0.0536, 0.0742, 0.0394, 0.0460),
}
"""Recall@5, Recall@10, NDCG@5, NDCG@10 of an independent implementation, leave-one-out."""


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the development data")
@pytest.mark.parametrize(("system", "name"), list(REFERENCE))
def test_reference_numbers_on_the_development_data(system, name):
    events = pq.read_table(DATA / name / "interactions.parquet", columns=["user_id", "item_id"])
    items = pq.read_metadata(DATA / name / "items.parquet").num_rows
    offsets = np.concatenate([[0], np.cumsum(np.bincount(events["user_id"].to_numpy()))])
    parts = np.zeros(events.num_rows, np.int64)
    parts[offsets[1:] - 2], parts[offsets[1:] - 1] = VALID, TEST
    split = SplitHistories(Histories(offsets, events["item_id"].to_numpy().astype(np.int64)), parts)
    model: Recommender = {"popularity": Popularity, "transitions": Transitions}[system]()
    model.fit(
        [RecommenderDomain(name, items, split.training, split.validation, split.split_id)],
        seed=0,
        device="cpu",
    )
    result = evaluate(model, split.test, system=system, domain=name, split_id=split.split_id, seed=0)
    found = summary(result, np.ones(items, np.int64))
    numbers = [found[metric] for metric in ("recall@5", "recall@10", "ndcg@5", "ndcg@10")]
    assert numbers == pytest.approx(REFERENCE[system, name], abs=6e-5)
