"""The protocol ranks everything, keeps what it saw, and refuses a leak."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest

from catalex.data.histories import Cases, Histories
from catalex.errors import CatalexError
from catalex.evaluation import evaluate, protocol
from catalex.recommenders.base import Ranking, ScoringRecommender

ITEMS = 12


class Scorer(ScoringRecommender):
    """Scores item j for a history that ends with i by (i * j) mod 7: many ties."""

    split_ids: ClassVar = {"toys": "split"}

    def fit(self, domains, *, seed, device, partial=None):
        raise AssertionError("an evaluation does not train")

    def save(self, folder):
        raise AssertionError("an evaluation does not save")

    @classmethod
    def load(cls, folder):
        raise AssertionError("an evaluation does not load")

    def score(self, histories):
        last = np.array([histories[row][-1] for row in range(len(histories))])
        return ((last[:, None] * np.arange(ITEMS)) % 7).astype(np.float32)


class Lister:
    """A recommender without scores: always the items 3, 2, 1."""

    split_ids: ClassVar = {"toys": "split"}

    def recommend(self, histories, k, excluded=None):
        items = np.full((len(histories), k), -1)
        items[:, :3] = [3, 2, 1]
        return Ranking(items, np.where(items >= 0, 1.0, -np.inf).astype(np.float32))

    def ranks(self, cases, k, excluded=None):
        raise AssertionError("one search is enough")


def cases(count=30):
    generator = np.random.default_rng(0)
    histories = [generator.integers(0, ITEMS, 3).tolist() for _ in range(count)]
    return Cases(np.arange(count) * 2, Histories.from_lists(histories), generator.integers(0, ITEMS, count))


def run(recommender, **changes):
    settings = {"system": "s", "domain": "toys", "split_id": "split", "seed": 0}
    return evaluate(recommender, changes.pop("cases", cases()), **{**settings, **changes})


def test_scores_are_ranked_pessimistically_over_all_items():
    found, own = run(Scorer()), cases()
    for row in range(len(own)):
        scores = [(own.histories[row][-1] * j) % 7 for j in range(ITEMS)]
        assert found.ranks[row] == sum(s >= scores[own.targets[row]] for s in scores)
        assert found.top[row].tolist() == sorted(range(ITEMS), key=lambda j: (-scores[j], j))[:10]
    assert np.array_equal(found.users, own.users)


def test_chunks_change_nothing(monkeypatch):
    whole = run(Scorer())
    monkeypatch.setattr(protocol, "CHUNK", 7)
    parts = run(Scorer())
    assert np.array_equal(whole.ranks, parts.ranks)
    assert np.array_equal(whole.top, parts.top)


def test_a_list_counts_by_place_and_absent_is_a_miss():
    found = run(Lister())
    place = {3: 1, 2: 2, 1: 3}
    assert found.ranks.tolist() == [place.get(int(t), 0) for t in cases().targets]
    assert found.top.shape == (30, 10)


def test_the_history_can_be_left_out_but_never_the_target():
    own = cases()
    found = run(Scorer(), exclude_history=True)
    repeats = 0
    for row, target in enumerate(own.targets.tolist()):
        known = set(own.histories[row].tolist())
        repeats += target in known
        scores = {j: (own.histories[row][-1] * j) % 7 for j in range(ITEMS) if j not in known - {target}}
        assert found.ranks[row] == sum(s >= scores[target] for s in scores.values())
        best = sorted(scores, key=lambda j: (-scores[j], j))[:10]
        assert found.top[row].tolist() == best + [-1] * (10 - len(best))
    assert 0 < repeats < len(own)
    assert (found.ranks <= run(Scorer()).ranks).all()


def test_another_split_is_refused():
    with pytest.raises(CatalexError, match=r"toys: .*another split.*found 'split'; allowed: new"):
        run(Scorer(), split_id="new")


def test_a_domain_never_trained_on_is_zero_shot():
    assert len(run(Scorer(), domain="yelp", split_id="new")) == 30


def test_no_cases():
    assert run(Scorer(), cases=cases().take(np.zeros(0, np.int64))).top.shape == (0, 10)


@pytest.mark.parametrize("ks", [(), (0, 5)])
def test_bad_list_lengths(ks):
    with pytest.raises(CatalexError, match="list lengths must be positive"):
        run(Scorer(), ks=ks)
