"""Tests of significance against scipy and worked values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from catalex.evaluation.significance import bootstrap_interval, holm, mcnemar_test, paired_t_test

FIRST = np.array([1, 0, 0, 1, 0, 1, 0, 0, 1, 0.0])
SECOND = np.array([0, 0, 0, 1, 0, 0, 0, 0, 1, 0.0])


def test_worked_t_test():
    test = paired_t_test(FIRST, SECOND)
    assert test.statistic == pytest.approx(1.5)
    assert test.p == pytest.approx(0.1679, abs=5e-5)


def test_against_scipy():
    generator = np.random.default_rng(0)
    first, second = generator.random(200), generator.random(200)
    expected = stats.ttest_rel(first, second)
    test = paired_t_test(first, second)
    assert test.statistic == pytest.approx(expected.statistic)
    assert test.p == pytest.approx(expected.pvalue)


def test_no_difference_and_constant_difference():
    assert paired_t_test(FIRST, FIRST) == paired_t_test(np.zeros(0), np.zeros(0))
    assert paired_t_test(FIRST, FIRST).p == 1.0
    constant = paired_t_test(FIRST + 1, FIRST)
    assert constant.p == 0.0
    assert constant.statistic == np.inf


def test_mcnemar_is_a_binomial_test_on_those_who_differ():
    assert mcnemar_test(FIRST, SECOND).p == pytest.approx(stats.binomtest(2, 2).pvalue)
    assert mcnemar_test(FIRST, FIRST).p == 1.0


def test_holm_worked():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_uncorrected_and_bonferroni_and_keeps_the_order(p_values):
    corrected = holm(p_values)
    for p, q in zip(p_values, corrected, strict=True):
        assert p <= q <= min(1.0, len(p_values) * p) + 1e-12 or q == max(corrected)
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(corrected)[order]) >= 0).all()


def test_bootstrap_is_seeded_and_close_to_the_normal_interval():
    values = np.random.default_rng(3).normal(0.2, 1.0, 2000)
    interval = bootstrap_interval(values, seed=1)
    assert interval == bootstrap_interval(values, seed=1)
    assert interval != bootstrap_interval(values, seed=2)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert interval.low == pytest.approx(values.mean() - half, abs=0.01)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.01)
