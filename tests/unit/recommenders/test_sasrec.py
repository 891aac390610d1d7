"""SASRec as a recommender: windows lose nothing, batches are fixed, results survive saving and batching."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalex.data.histories import Cases, Histories
from catalex.errors import CatalexError
from catalex.recommenders.base import RecommenderDomain, ScoringRecommender, sampled
from catalex.recommenders.sasrec import SASRec, SASRecOptions
from catalex.training.seeds import generator
from catalex.training.sequences import WindowPlan, training_windows

ITEMS = 12
OPTIONS = SASRecOptions(hidden=16, max_history=6, epochs=20, batch_size=16, learning_rate=0.01, dropout=0.1)


def cycle(start: int, length: int) -> list[int]:
    """A user who walks round a ring of items: the last item fixes the next."""
    return [(start + step) % (ITEMS - 1) for step in range(length)]


@pytest.fixture(scope="module")
def domain() -> RecommenderDomain:
    training = Histories.from_lists([cycle(user, 4 + user % 9) for user in range(60)])
    targets = np.array([(training[user][-1] + 1) % (ITEMS - 1) for user in range(60)])
    return RecommenderDomain("ring", ITEMS, training, Cases(np.arange(60), training, targets), "split")


@pytest.fixture(scope="module")
def model(domain) -> SASRec:
    recommender = SASRec(OPTIONS)
    facts = recommender.fit([domain], seed=0, device="cpu")
    assert facts["valid_ndcg@10"] > 0.9
    assert facts["parameters"] == sum(p.numel() for p in recommender.model.parameters())
    return recommender


# --- windows ----------------------------------------------------------------------------


@given(st.lists(st.lists(st.integers(0, 5), max_size=17), min_size=1, max_size=6), st.integers(1, 5))
def test_every_pair_is_a_position_of_exactly_one_window(sequences, length):
    windows = training_windows(Histories.from_lists(sequences), length, items=6)
    found = []
    for history, targets in zip(windows.histories.tolist(), windows.targets.tolist(), strict=True):
        size = sum(target >= 0 for target in targets)
        assert size > 0
        assert history[size:] == [6] * (length - size)
        assert targets[size:] == [-1] * (length - size)
        assert history[1:size] == targets[: size - 1]
        found += list(zip(history[:size], targets[:size], strict=True))
    assert sorted(found) == sorted(pair for sequence in sequences for pair in pairwise(sequence))


def test_windows_are_counted_from_the_end():
    windows = training_windows(Histories.from_lists([[0, 1, 2, 3, 4, 5]]), 3, items=9)
    assert windows.histories.tolist() == [[2, 3, 4], [0, 1, 9]] or windows.histories.tolist() == [
        [0, 1, 9],
        [2, 3, 4],
    ]


def test_plan_visits_every_window_in_full_batches(domain):
    windows = training_windows(domain.training, 6, ITEMS)
    plan = WindowPlan(windows, 16, 0, 0, "cpu")
    seen = np.concatenate([plan[i]["histories"].numpy() for i in range(len(plan))])
    assert len(seen) == len(plan) * 16
    assert sorted(map(tuple, seen[: len(windows)])) == sorted(map(tuple, windows.histories))
    for i in range(len(plan)):
        batch = plan[i]
        assert batch["positions"].shape == batch["targets"].shape
        assert len(batch["positions"]) % 16 == 0
        real = batch["targets"] >= 0
        histories = batch["histories"].flatten()[batch["positions"][real]]
        assert ((histories + 1) % (ITEMS - 1) == batch["targets"][real]).all()
    with pytest.raises(IndexError):
        plan[len(plan)]


# --- behaviour ----------------------------------------------------------------------------


def test_scores_cover_the_catalogue(model, domain):
    assert model.score(domain.training).shape == (60, ITEMS)
    assert model.score(domain.training.take(np.zeros(0, np.int64))).shape == (0, ITEMS)


def test_device_rankings_equal_the_base_class(model, domain):
    for k in (3, ITEMS, ITEMS + 2):
        fast, slow = (
            model.recommend(domain.training, k),
            ScoringRecommender.recommend(model, domain.training, k),
        )
        assert np.array_equal(fast.items, slow.items)
        assert np.array_equal(fast.scores, slow.scores)
    assert np.array_equal(
        model.ranks(domain.validation, 10), ScoringRecommender.ranks(model, domain.validation, 10)
    )


def test_equal_scores_come_in_the_order_of_item_ids(model):
    empty = Histories.from_lists([[], []])
    tied = np.argsort(-model.catalogue.popularity, kind="stable")[:5]
    assert model.recommend(empty, 5).items.tolist() == [tied.tolist()] * 2


def test_batching_changes_nothing(model, domain, monkeypatch):
    whole = model.score(domain.training)
    single = np.concatenate([model.score(domain.training.take(np.array([user]))) for user in range(60)])
    np.testing.assert_allclose(single, whole, atol=1e-5)
    monkeypatch.setattr(SASRec, "BLOCK", 7)
    np.testing.assert_allclose(model.score(domain.training), whole, atol=1e-5)


def test_only_the_latest_items_count(model):
    long, short = cycle(0, 11), cycle(0, 11)[-6:]
    scores = model.score(Histories.from_lists([long, short]))
    assert np.array_equal(scores[0], scores[1])


def test_save_and_load_give_equal_scores(model, domain, tmp_path):
    model.save(tmp_path)
    again = SASRec.load(tmp_path)
    assert np.array_equal(again.score(domain.training), model.score(domain.training))
    assert again.options == model.options
    assert again.split_ids == {"ring": "split"}


def test_same_seed_same_weights_other_seed_others(domain):
    options = OPTIONS.model_copy(update={"epochs": 1})

    def scores(seed):
        recommender = SASRec(options)
        recommender.fit([domain], seed=seed, device="cpu")
        return recommender.score(domain.training)

    assert np.array_equal(scores(0), scores(0))
    assert not np.array_equal(scores(0), scores(1))


def test_a_subset_of_validation_users_is_random_and_seeded(domain):
    chosen = [
        sampled(domain.validation, 10, generator(seed, "validation users")).users.tolist()
        for seed in (0, 0, 1)
    ]
    assert chosen[0] == chosen[1] != chosen[2]
    assert chosen[0] == sorted(chosen[0])
    assert max(chosen[0]) > 20
    assert len(sampled(domain.validation, 99, generator(0, "validation users"))) == 60


# --- bad input ----------------------------------------------------------------------------


def test_bad_options_and_domains(domain):
    with pytest.raises(CatalexError, match=r"hidden is not divisible by heads .*\(65, 2\)"):
        SASRec(SASRecOptions(hidden=65))
    with pytest.raises(CatalexError, match="Did you mean 'max_history'"):
        SASRecOptions.parse({"max_histroy": 3}, "recommender")
    with pytest.raises(CatalexError, match="'sasrec' learns from one domain"):
        SASRec(OPTIONS).fit([domain, domain], seed=0, device="cpu")
    single = replace(domain, training=Histories.from_lists([[1], [2]]))
    with pytest.raises(CatalexError, match="no user has two training interactions"):
        SASRec(OPTIONS).fit([single], seed=0, device="cpu")
    with pytest.raises(CatalexError, match="has not been trained"):
        SASRec(OPTIONS).score(domain.training)
