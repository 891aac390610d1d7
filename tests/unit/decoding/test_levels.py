"""Changing a trie's arrays in place of cutting them anew: both must give the same arrays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalex.decoding import levels as under_test
from catalex.decoding.levels import Levels, cut, expand, find, with_rows, without_leaves
from catalex.errors import CatalexError

TOKENS = [[1, 2, 3], [1, 5, 6, 7, 9], [3, 2**30, 2**30 + 1, 1], [32_766, 32_767, 32_768]]


@st.composite
def two_parts(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Distinct rows of equal length, cut in two."""
    length = draw(st.integers(1, 4))
    row = st.tuples(*[st.sampled_from(draw(st.sampled_from(TOKENS)))] * length)
    rows = draw(st.lists(row, unique=True, min_size=1, max_size=30))
    middle = draw(st.integers(0, len(rows)))
    array = np.array(rows, np.int64).reshape(len(rows), length)
    return array[:middle], array[middle:]


def assert_same(found: Levels, expected: Levels) -> None:
    assert found.items.tolist() == expected.items.tolist()
    assert len(found.levels) == len(expected.levels)
    for ours, theirs in zip(found.levels, expected.levels, strict=True):
        assert ours.tokens.tolist() == theirs.tokens.tolist()
        assert ours.starts.tolist() == theirs.starts.tolist()
        assert ours.fan_out == theirs.fan_out
        assert ours.starts.dtype == np.int32


@pytest.mark.parametrize("blocks", [0, 4096])
@given(parts=two_parts())
def test_adding_equals_cutting_anew(blocks: int, parts: tuple[np.ndarray, np.ndarray]) -> None:
    old, new = parts
    ids = np.arange(len(old) + len(new))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(under_test, "BLOCKS", blocks)
        found = with_rows(cut(old, ids[: len(old)]), new, ids[len(old) :])
    assert_same(found, cut(np.concatenate([old, new]), ids))


@pytest.mark.parametrize("blocks", [0, 4096])
@given(parts=two_parts())
def test_removing_equals_cutting_anew(blocks: int, parts: tuple[np.ndarray, np.ndarray]) -> None:
    kept, gone = parts
    ids = np.arange(len(kept) + len(gone))
    whole = cut(np.concatenate([kept, gone]), ids)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(under_test, "BLOCKS", blocks)
        found = without_leaves(whole, np.flatnonzero(whole.items >= len(kept)))
    assert_same(found, cut(kept, ids[: len(kept)]))


@given(two_parts())
def test_a_place_is_the_number_of_smaller_prefixes(parts: tuple[np.ndarray, np.ndarray]) -> None:
    held, asked = parts
    levels = cut(held, np.arange(len(held)))
    for length, (place, there) in enumerate(find(levels, asked), start=1):
        prefixes = {tuple(row) for row in held[:, :length].tolist()}
        for row, at, here in zip(asked[:, :length].tolist(), place, there, strict=True):
            assert at == sum(prefix < tuple(row) for prefix in prefixes)
            assert here == (tuple(row) in prefixes)


@given(two_parts())
def test_expanding_undoes_cutting(parts: tuple[np.ndarray, np.ndarray]) -> None:
    rows = np.concatenate(parts)
    found, items = expand(cut(rows, np.arange(len(rows))))
    assert (found == rows[items]).all()
    assert found.tolist() == sorted(rows.tolist())


def test_tokens_are_narrow_where_they_fit() -> None:
    levels = cut(np.array([[32_767, 32_768]]), np.arange(1)).levels
    assert [level.tokens.dtype for level in levels] == [np.int16, np.int32]
    grown = with_rows(cut(np.array([[5]]), np.arange(1)), np.array([[70_000]]), np.array([1]))
    assert grown.levels[0].tokens.tolist() == [5, 70_000]


def test_equal_rows_are_refused() -> None:
    levels = cut(np.array([[1, 2], [3, 4]]), np.arange(2))
    with pytest.raises(CatalexError, match=r"two items have one identifier \(found \(5, 6\)\)"):
        with_rows(levels, np.array([[5, 6], [5, 6]]), np.array([2, 3]))
    with pytest.raises(CatalexError, match=r"two items have one identifier \(found \(1, 2\)\)"):
        cut(np.array([[1, 2], [3, 4], [1, 2]]), np.arange(3))
    wide = np.array([[1, 2**30, 2**30, 9], [1, 2**30, 2**30, 9], [1, 1, 1, 1]])
    with pytest.raises(CatalexError, match="two items have one identifier"):
        cut(wide, np.arange(3))
