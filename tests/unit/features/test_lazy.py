"""Lazy sequences index and slice as lists do, and fetch nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalex.features.lazy import Lazy


class Squares(Lazy[int]):
    def __init__(self, count: int) -> None:
        self.count = count
        self.fetched: list[int] = []

    def __len__(self) -> int:
        return self.count

    def fetch(self, place: int) -> int:
        self.fetched.append(place)
        return place * place


@given(st.integers(0, 6), st.slices(6), st.integers(-8, 8))
def test_indexes_as_a_list(count: int, part: slice, place: int) -> None:
    lazy, plain = Squares(count), [n * n for n in range(count)]
    assert list(lazy) == plain
    assert lazy[part] == plain[part]
    if -count <= place < count:
        assert lazy[place] == plain[place]
    else:
        with pytest.raises(IndexError):
            lazy[place]


def test_fetches_what_is_asked_for_alone() -> None:
    lazy = Squares(9)
    assert (lazy[-1], lazy[2:4]) == (64, [4, 9])
    assert lazy.fetched == [8, 2, 3]
