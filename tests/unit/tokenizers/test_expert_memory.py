"""Which expert chose codes that come without its name."""

from __future__ import annotations

from collections import Counter
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalex.tokenizers.expert_memory import ExpertMemory

SIZE = 3
items = st.lists(st.tuples(*[st.integers(0, SIZE - 1)] * 3, st.integers(0, 3)), min_size=1, max_size=40)


def remember(rows: list[tuple[int, ...]], size: int = SIZE) -> ExpertMemory:
    """Rows of codes with the expert behind them."""
    table = np.array(rows, np.int32)
    return ExpertMemory.of(table[:, :-1], table[:, -1], size)


def slow(rows: list[tuple[int, ...]], codes: tuple[int, ...]) -> int:
    """The longest prefix that occurs, and the expert that occurs most often with it, counted."""
    for depth in range(len(codes), -1, -1):
        votes = Counter(row[-1] for row in rows if row[:depth] == codes[:depth])
        if votes:
            return min(votes, key=lambda expert: (-votes[expert], expert))
    raise AssertionError("there is always the empty prefix")


@given(items, st.lists(st.tuples(*[st.integers(0, SIZE - 1)] * 3), min_size=1, max_size=20))
def test_the_longest_known_prefix_decides(
    rows: list[tuple[int, ...]], asked: list[tuple[int, int, int]]
) -> None:
    found = remember(rows).guess(np.array(asked, np.int32))
    assert found.tolist() == [slow(rows, codes) for codes in asked]


@given(items)
def test_what_is_saved_says_it_all(rows: list[tuple[int, ...]]) -> None:
    memory = remember(rows)
    assert memory.rows.dtype == np.int32
    assert memory.rows[:, -1].sum() == len(rows)
    assert len(memory.rows) == len(set(rows))
    codes = np.array(np.meshgrid(*[range(SIZE)] * 3), np.int32).reshape(3, -1).T
    np.testing.assert_array_equal(ExpertMemory(memory.rows, SIZE).guess(codes), memory.guess(codes))


@given(items, st.randoms())
def test_the_order_of_the_items_does_not_matter(rows: list[tuple[int, ...]], random: Random) -> None:
    turned = list(rows)
    random.shuffle(turned)
    np.testing.assert_array_equal(remember(turned).rows, remember(rows).rows)


def test_every_item_has_a_vote() -> None:
    """Two items with other codes outvote one when only the first code is known."""
    memory = remember([(0, 1, 5), (0, 1, 5), (0, 2, 7), (1, 1, 7), (1, 1, 7)])
    assert memory.guess(np.array([[0, 2], [0, 0], [2, 2]], np.int32)).tolist() == [7, 5, 7]


def test_long_codes_of_large_codebooks_do_not_overflow() -> None:
    """65536^8 identifiers are more than 64 bits can number."""
    largest = 65535
    memory = remember([(largest,) * 8 + (1,), (largest,) * 7 + (0, 2)], 65536)
    asked = np.array([(largest,) * 8, (largest,) * 7 + (0,), (0,) * 8], np.int32)
    assert memory.guess(asked).tolist() == [1, 2, 1]


@pytest.mark.parametrize("count", [0, 1, 300])
def test_any_number_of_items_is_asked_about(count: int) -> None:
    found = remember([(0, 0, 0, 2)]).guess(np.zeros((count, 3), np.int32))
    assert found.tolist() == [2] * count
