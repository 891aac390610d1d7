"""The trie against a dictionary that holds the same identifiers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from catalex.decoding.trie import ABSENT, DeviceTrie, Trie
from catalex.errors import CatalexError
from catalex.recommenders import base

HUGE = 2**30
"""With four levels of tokens this large a row does not fit in one integer; sorting takes its other path."""


@st.composite
def identifiers(draw: st.DrawFn, least: int = 0) -> list[tuple[int, ...]]:
    """Distinct identifiers of equal length in arbitrary order, with many shared prefixes."""
    length = draw(st.integers(1, 4))
    tokens = st.sampled_from(draw(st.sampled_from([[1, 2, 3], [1, 5, 6, 7], [3, HUGE, HUGE + 1, 1]])))
    row = st.tuples(*[tokens] * length)
    return draw(st.lists(row, unique=True, min_size=least, max_size=30))


def as_rows(found: list[tuple[int, ...]], length: int) -> np.ndarray:
    return np.array(found, dtype=np.int64).reshape(len(found), length)


def walk(trie: DeviceTrie) -> dict[tuple[int, ...], int]:
    """Every identifier that the search could reach, with its item."""
    nodes: list[tuple[int, tuple[int, ...]]] = [(0, ())]
    for level in trie.levels:
        following = []
        for node, prefix in nodes:
            children = range(int(level.starts[node]), int(level.starts[node + 1]))
            assert len(children) <= level.fan_out
            following += [(child, (*prefix, int(level.tokens[child]))) for child in children]
        nodes = following
    return {prefix: int(trie.items[leaf]) for leaf, prefix in nodes} if len(trie.items) else {}


@given(identifiers(least=1))
def test_holds_exactly_the_identifiers_it_was_given(found: list[tuple[int, ...]]) -> None:
    trie = Trie(np.array(found))
    assert walk(trie.to("cpu")) == {identifier: item for item, identifier in enumerate(found)}
    assert len(trie) == trie.size == len(found)
    assert trie.to("cpu").highest_token == max(map(max, found))


@given(identifiers(least=1), st.data())
def test_lookup_equals_a_dictionary(found: list[tuple[int, ...]], data: st.DataObject) -> None:
    kept = data.draw(st.integers(0, len(found)))
    table = {identifier: item for item, identifier in enumerate(found[:kept])}
    trie = Trie(as_rows(found[:kept], len(found[0])))
    assert trie.item_of(np.array(found)).tolist() == [table.get(identifier, ABSENT) for identifier in found]
    assert [identifier in trie for identifier in found] == [identifier in table for identifier in found]


@given(identifiers(least=2), st.data())
def test_adding_and_removing_equals_a_dictionary(found: list[tuple[int, ...]], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(found)), max_size=4)))
    length = len(found[0])
    bounds = [0, *cuts, len(found)]
    trie = Trie(as_rows([], length))
    table: dict[tuple[int, ...], int] = {}
    used = 0
    for begin, end in pairwise(bounds):
        trie.add(as_rows(found[begin:end], length))
        table |= {identifier: used + i for i, identifier in enumerate(found[begin:end])}
        used += end - begin
        gone = (
            data.draw(st.lists(st.sampled_from(sorted(table.values())), unique=True, max_size=3))
            if table
            else []
        )
        trie.remove(gone)
        table = {identifier: item for identifier, item in table.items() if item not in gone}
        assert walk(trie.to("cpu")) == table
        assert len(trie) == len(table)
        assert trie.size == used
        assert np.flatnonzero(trie.active).tolist() == sorted(table.values())


@given(identifiers(least=1))
def test_rows_are_sorted_and_name_their_items(found: list[tuple[int, ...]]) -> None:
    rows, items = Trie(np.array(found)).rows()
    assert [tuple(row) for row in rows.tolist()] == sorted(found)
    assert [found[item] for item in items] == sorted(found)


def test_a_search_that_began_keeps_its_state() -> None:
    trie = Trie(np.array([[1, 4], [2, 5]]))
    before = trie.to("cpu")
    trie.add(np.array([[1, 5]]))
    assert walk(before) == {(1, 4): 0, (2, 5): 1}
    assert walk(trie.to("cpu")) == {(1, 4): 0, (2, 5): 1, (1, 5): 2}
    assert trie.to("cpu") is trie.to(torch.device("cpu"))


def test_a_removed_identifier_is_free_again_and_its_id_is_not() -> None:
    trie = Trie(np.array([[1, 4], [2, 5]]))
    trie.remove([0])
    assert (1, 4) not in trie
    trie.add(np.array([[1, 4]]))
    assert trie.item_of(np.array([[1, 4], [2, 5]])).tolist() == [2, 1]


def test_refused_changes_leave_the_index_as_it_was() -> None:
    trie = Trie(np.array([[1, 4], [2, 5]]))
    for wrong in ([[3, 3], [2, 5]], [[3, 3], [3, 3]]):
        with pytest.raises(
            CatalexError, match=r"identifiers: two items have one identifier \(found \([23], [35]\)"
        ):
            trie.add(np.array(wrong))
    with pytest.raises(CatalexError, match=r"items to remove: the item is not in the index \(found 2\)"):
        trie.remove([0, 2])
    assert walk(trie.to("cpu")) == {(1, 4): 0, (2, 5): 1}
    assert trie.size == 2


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([[1, 2], [1, 2]], r"two items have one identifier \(found \(1, 2\)\)\. Resolve conflicts"),
        ([[1, 0]], r"a token is out of range \(found 0; allowed: 1 to .*token 0 is padding"),
        ([[1, -3]], r"a token is out of range \(found -3"),
        ([[1, 2**31]], r"a token is out of range \(found 2147483648"),
        ([1, 2], r"identifiers must be rows of integers \(found 'int64 \(2,\)'; allowed: \(items, levels\)"),
        ([[1.0, 2.0]], r"identifiers must be rows of integers \(found 'float64"),
    ],
)
def test_bad_identifiers_get_a_sentence(tokens: list, message: str) -> None:
    with pytest.raises(CatalexError, match=message):
        Trie(np.array(tokens))


def test_another_number_of_levels_is_refused() -> None:
    with pytest.raises(CatalexError, match=r"another number of levels \(found 3; allowed: 2\)"):
        Trie(np.array([[1, 2]])).add(np.array([[1, 2, 3]]))
    assert (1, 2, 3) not in Trie(np.array([[1, 2]]))


def test_index_is_small() -> None:
    rows = np.unique(np.random.default_rng(0).integers(0, 256, (50_000, 3)), axis=0) + np.array([1, 257, 513])
    trie = Trie(rows)
    assert trie.nbytes / len(trie) < 20
    assert (trie.item_of(rows) == np.arange(len(rows))).all()


def test_absent_is_the_ranking_value() -> None:
    assert ABSENT == base.ABSENT
