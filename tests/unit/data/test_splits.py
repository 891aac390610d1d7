"""Splits against slow, obvious oracles, and the counts that follow from them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from catalex.data.columns import TEST, TRAIN, VALID
from catalex.data.histories import Histories, SplitHistories
from catalex.data.splits import global_time, leave_one_out
from catalex.errors import CatalexError

LENGTHS = st.lists(st.integers(1, 8), min_size=1, max_size=20)


@given(LENGTHS)
def test_leave_one_out_equals_the_slow_one(lengths: list[int]) -> None:
    assume(max(lengths) >= 3)
    expected = []
    for n in lengths:
        expected += [TRAIN] * n if n < 3 else [TRAIN] * (n - 2) + [VALID, TEST]
    assert leave_one_out(np.array(lengths), "demo").tolist() == expected


@given(LENGTHS)
def test_leave_one_out_counts(lengths: list[int]) -> None:
    assume(max(lengths) >= 3)
    parts = leave_one_out(np.array(lengths), "demo")
    histories = Histories.from_lists([list(range(n)) for n in lengths])
    split = SplitHistories(histories, parts.astype(np.int64))
    evaluated = [n for n in lengths if n >= 3]
    assert len(split.test) == len(split.validation) == len(evaluated)
    assert len(split.training.items) == sum(lengths) - 2 * len(evaluated)
    assert split.test.targets.tolist() == [n - 1 for n in evaluated]
    assert split.test.histories.lengths.tolist() == [n - 1 for n in evaluated]
    assert split.validation.targets.tolist() == [n - 2 for n in evaluated]


def test_leave_one_out_too_small() -> None:
    with pytest.raises(
        CatalexError, match=r"tiny: the domain is too small.*no user has 3.*2 users with at most 2"
    ):
        leave_one_out(np.array([2, 1]), "tiny")


@given(
    st.lists(st.integers(0, 30), min_size=5, max_size=60),
    st.sampled_from([(0.1, 0.1), (0.2, 0.1), (0.3, 0.3)]),
)
def test_global_time_equals_the_slow_one(times: list[int], fractions: tuple[float, float]) -> None:
    ordered, count = sorted(times), len(times)
    hundredths = [round(100 * f) for f in fractions]
    first = ordered[(100 - sum(hundredths)) * count // 100]
    second = ordered[(100 - hundredths[1]) * count // 100]
    expected = [TEST if t >= second else VALID if t >= first else TRAIN for t in times]
    if set(expected) != {TRAIN, VALID, TEST}:
        with pytest.raises(CatalexError, match=r"too small for a global-time split"):
            global_time(np.array(times), *fractions, "demo")
        return
    parts, *cuts = global_time(np.array(times), *fractions, "demo")
    assert parts.tolist() == expected
    assert cuts == [first, second]


@given(st.lists(st.integers(0, 1000), min_size=10, max_size=60, unique=True))
def test_global_time_sizes_without_ties(times: list[int]) -> None:
    parts, *_ = global_time(np.array(times), 0.2, 0.1, "demo")
    count = len(times)
    assert (parts == TRAIN).sum() == 70 * count // 100
    assert (parts == TEST).sum() == count - 90 * count // 100


def test_global_time_without_spread() -> None:
    with pytest.raises(CatalexError, match=r"train 0, valid 0, test 9.*use split: leave-one-out"):
        global_time(np.full(9, 5), 0.1, 0.1, "demo")
