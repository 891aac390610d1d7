"""Transitions against a dictionary of counts."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalex.data.histories import Cases, Histories
from catalex.errors import CatalexError
from catalex.recommenders.base import RecommenderDomain, ScoringRecommender
from catalex.recommenders.transitions import Transitions

ITEMS = 7
sequences = st.lists(st.lists(st.integers(0, ITEMS - 1), max_size=8), min_size=1, max_size=12)


def fitted(training: list[list[int]], items: int = ITEMS) -> Transitions:
    model = Transitions()
    cases = Cases(np.zeros(0, np.int64), Histories.from_lists([]), np.zeros(0, np.int64))
    model.fit(
        [RecommenderDomain("toys", items, Histories.from_lists(training), cases, "split")],
        seed=0,
        device="cpu",
    )
    return model


def test_worked():
    model = fitted([[0, 1, 2], [0, 1], [0, 3], [4]])
    scores = model.score(Histories.from_lists([[5, 0]]))[0]
    assert scores == pytest.approx([3 / 4, 2 + 2 / 4, 1 / 4, 1 + 1 / 4, 1 / 4, 0, 0])


@given(sequences, sequences)
def test_scores_equal_plain_counting(training, asked):
    pairs = Counter(pair for sequence in training for pair in pairwise(sequence))
    popular = Counter(item for sequence in training for item in sequence)
    most = max(popular.values(), default=0)
    scores = fitted(training).score(Histories.from_lists(asked))
    for row, history in enumerate(asked):
        for item in range(ITEMS):
            follows = pairs[history[-1], item] if history else 0
            assert scores[row, item] == pytest.approx(follows + popular[item] / (most + 1))


@given(sequences, sequences, st.integers(1, 9))
def test_sparing_search_equals_the_full_one(training, asked, k):
    model, histories = fitted(training), Histories.from_lists(asked)
    fast, slow = model.recommend(histories, k), ScoringRecommender.recommend(model, histories, k)
    assert np.array_equal(fast.items, slow.items)
    assert np.array_equal(fast.scores, slow.scores)


def test_pairs_never_cross_users():
    assert fitted([[0, 1], [2, 3]]).score(Histories.from_lists([[1]]))[0, 2] < 1


def test_save_and_load(tmp_path):
    model, asked = fitted([[0, 1, 2], [0, 1]]), Histories.from_lists([[0], [], [2, 1]])
    model.save(tmp_path)
    again = Transitions.load(tmp_path)
    assert np.array_equal(again.score(asked), model.score(asked))
    assert again.split_ids == {"toys": "split"}


def test_one_domain_only():
    with pytest.raises(CatalexError, match="'transitions' learns from one domain"):
        Transitions().fit([], seed=0, device="cpu")
