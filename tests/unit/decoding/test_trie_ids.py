"""A trie whose caller gives out the item ids: gaps stay gaps, and ids are never those of the next row."""

from __future__ import annotations

import numpy as np

from catalex.decoding.trie import ABSENT, Trie

ROWS = np.array([[1, 5], [2, 6], [2, 7], [3, 5]])


def test_ids_in_any_order_with_gaps() -> None:
    trie = Trie(ROWS, np.array([7, 2, 0, 4]))
    assert trie.item_of(ROWS).tolist() == [7, 2, 0, 4]
    assert (trie.size, len(trie)) == (8, 4)
    assert np.flatnonzero(trie.active).tolist() == [0, 2, 4, 7]


def test_ids_of_added_rows() -> None:
    trie = Trie(ROWS[:2])
    trie.add(ROWS[2:], np.array([9, 5]))
    assert trie.item_of(ROWS).tolist() == [0, 1, 9, 5]
    assert trie.size == 10
    trie.remove([9])
    trie.add(ROWS[2:3], np.array([3]))  # below the largest: it was free
    assert trie.item_of(ROWS).tolist() == [0, 1, 3, 5]
    assert trie.size == 10
    trie.add(np.array([[4, 4]]))
    assert trie.item_of(np.array([[4, 4]])).tolist() == [10]


def test_the_same_index_as_one_built_at_once() -> None:
    rng = np.random.default_rng(0)
    rows = np.unique(rng.integers(1, 9, (300, 3)), axis=0)
    ids = rng.permutation(1000)[: len(rows)]
    whole, grown = Trie(rows, ids), Trie(rows[:50], ids[:50])
    for start in range(50, len(rows), 7):
        grown.add(rows[start : start + 7], ids[start : start + 7])
    gone = ids[::3]
    whole.remove(gone)
    grown.remove(gone)
    assert whole.item_of(rows).tolist() == grown.item_of(rows).tolist()
    assert (whole.item_of(rows) == ABSENT).tolist() == [i % 3 == 0 for i in range(len(rows))]
    for one, two in zip(whole.to("cpu").levels, grown.to("cpu").levels, strict=True):
        assert one.tokens.tolist() == two.tokens.tolist()
        assert one.starts.tolist() == two.starts.tolist()
