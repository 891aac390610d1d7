"""What each level adds, which levels add nothing, and which collisions are forced."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalex.tokenizers.base import CodeSpace
from catalex.tokenizers.levels import (
    constant_levels,
    empty_levels,
    forced_collisions,
    level_facts,
    same_vector_groups,
)
from catalex.types import Codes, Floats

NATURAL = (0, 1, 2)
SPACE = CodeSpace.of(3, 8)


def different(items: int) -> Floats:
    """Vectors of which no two are equal."""
    return np.arange(items, dtype=np.float32)[:, None]


def codes_of(*columns: object) -> Codes:
    return np.stack([np.asarray(column) for column in columns], 1).astype(np.int32)


GENERATOR = np.random.default_rng(0)
FIRST, SECOND, THIRD = GENERATOR.integers(0, 8, (3, 200))


def test_a_level_that_follows_from_its_prefix_is_named() -> None:
    assert empty_levels(codes_of(FIRST, SECOND, THIRD), SPACE, NATURAL, different(200)) == []
    assert empty_levels(codes_of(FIRST, 7 - FIRST, THIRD), SPACE, NATURAL, different(200)) == [2]
    assert empty_levels(codes_of(FIRST, FIRST, FIRST), SPACE, NATURAL, different(200)) == [2, 3]
    assert empty_levels(codes_of(0 * FIRST, SECOND, THIRD), SPACE, NATURAL, different(200)) == [1]


def test_a_level_with_a_single_code_could_add_nothing() -> None:
    space = CodeSpace((8, 1, 8), (0, 1, 2))
    codes = codes_of(FIRST, 0 * FIRST, THIRD)
    assert empty_levels(codes, space, NATURAL, different(200)) == []
    assert empty_levels(codes, SPACE, NATURAL, different(200)) == [2]
    assert constant_levels(codes) == [2]


def test_a_level_that_nearly_follows_is_named_too() -> None:
    nearly = 7 - FIRST
    nearly[:1] = (nearly[:1] + 1) % 8
    assert empty_levels(codes_of(FIRST, nearly, THIRD), SPACE, NATURAL, different(200)) == [2]
    nearly[:40] = SECOND[:40]
    assert empty_levels(codes_of(FIRST, nearly, THIRD), SPACE, NATURAL, different(200)) == []


def test_where_nothing_is_left_to_tell_apart_no_level_is_blamed() -> None:
    codes = codes_of(np.arange(200) % 8, np.arange(200) // 8 % 8, np.arange(200) // 64)
    deeper = np.concatenate([codes, np.zeros((200, 1), np.int32)], 1)
    space, order = CodeSpace.of(4, 8), (0, 1, 2, 3)
    assert empty_levels(deeper, space, order, different(200)) == []
    # Identical vectors cannot be told apart either.
    doubled = np.repeat(deeper, 3, axis=0)
    assert empty_levels(doubled, space, order, np.repeat(different(200), 3, axis=0)) == []
    assert empty_levels(doubled, space, order, different(600)) == [4]


def test_the_order_of_choice_decides() -> None:
    codes = codes_of(SECOND * 0 + FIRST, SECOND, FIRST)
    assert empty_levels(codes, SPACE, NATURAL, different(200)) == [3]
    assert empty_levels(codes, SPACE, (2, 0, 1), different(200)) == [1]
    assert empty_levels(codes, SPACE, (2, 0, 1), different(200), experts=(0,)) == []


def test_entropies_in_both_orders() -> None:
    first = np.repeat([0, 1], 8)
    codes = codes_of(first, np.tile([0, 1, 2, 3], 4), 3 * first)
    written = level_facts(codes, SPACE, NATURAL)
    assert [row["conditional_entropy"] for row in written] == pytest.approx([math.log(2), math.log(4), 0])
    assert [row["chosen_entropy"] for row in written] == [row["conditional_entropy"] for row in written]
    chosen = level_facts(codes, SPACE, (2, 0, 1))
    assert [row["chosen_entropy"] for row in chosen] == pytest.approx([0, math.log(4), math.log(2)])
    assert [row["conditional_entropy"] for row in chosen] == [row["conditional_entropy"] for row in written]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40))
def test_forced_collisions_count_repeated_vectors(rows: list[int]) -> None:
    vectors = np.array([[0.1 * row, 1.0] for row in rows], np.float32)
    assert forced_collisions(vectors) == pytest.approx((len(rows) - len(set(rows))) / len(rows))
    groups = same_vector_groups(vectors)
    same = np.array(rows)[:, None] == np.array(rows)
    assert ((groups[:, None] == groups) == same).all()


def test_zero_has_one_sign_and_nobody_collides_with_nobody() -> None:
    assert forced_collisions(np.array([[0.0], [-0.0]], np.float32)) == 0.5
    assert forced_collisions(np.zeros((0, 3), np.float32)) == 0
