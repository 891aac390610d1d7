"""Long-tail groups partition the users; weighted means equal the whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalex.evaluation.strata import relative_gain, strata, stratified


def test_borders():
    groups = {s.name: s.members.tolist() for s in strata(np.array([0, 19, 20, 39, 40, 59, 60, 1000]))}
    assert groups["[0, 20)"] == [1, 1, 0, 0, 0, 0, 0, 0]
    assert groups["[20, 40)"] == [0, 0, 1, 1, 0, 0, 0, 0]
    assert groups["[40, 60)"] == [0, 0, 0, 0, 1, 1, 0, 0]
    assert groups["[60, inf)"] == [0, 0, 0, 0, 0, 0, 1, 1]
    assert groups["[0, 0]"] == [1, 0, 0, 0, 0, 0, 0, 0]


@given(st.lists(st.tuples(st.integers(0, 90), st.floats(0, 1)), min_size=1, max_size=60))
def test_weighted_mean_equals_the_overall_mean(users):
    popularity, values = (np.array(column) for column in zip(*users, strict=True))
    rows = [r for r in stratified({"ndcg@10": values}, popularity) if r["partition"]]
    assert sum(r["users"] for r in rows) == len(users)
    total = sum(r["users"] * r["ndcg@10"] for r in rows if r["users"])
    assert total / len(users) == pytest.approx(values.mean())


def test_empty_group_has_no_mean_and_no_gain():
    popularity = np.array([5, 5, 70])
    own = stratified({"m": np.array([0.2, 0.4, 0.0])}, popularity)
    base = stratified({"m": np.array([0.1, 0.1, 0.0])}, popularity)
    assert own[1]["m"] is None
    assert relative_gain(own, base, "m") == [pytest.approx(2.0), None, None, None, None]
