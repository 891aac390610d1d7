"""Ids of strings become numbers by hashes: the same numbers as by the strings, also where hashes collide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalex.data.sources import collecting
from catalex.data.sources.base import RawDomain
from catalex.data.sources.collecting import CHECK, Collected, collect_source
from catalex.errors import CatalexError

IDS = st.text(alphabet="abé0 ", max_size=3)
EVENTS = st.lists(st.tuples(IDS, IDS), min_size=1, max_size=30)


class InMemory:
    """A source of given events and items."""

    def __init__(self, events: list[tuple[Any, str]], items: list[str]) -> None:
        users, named = zip(*events, strict=True)
        self.events = pl.DataFrame({"user": users, "source_id": named, "timestamp": range(len(events))})
        self.items = pl.DataFrame({"source_id": items})

    def files(self) -> list[Path]:
        return [Path("events.csv"), Path("items.csv")]

    def read(self) -> RawDomain:
        return RawDomain(self.items.lazy(), self.events.lazy())


def collect(events: list[tuple[Any, str]], items: list[str], unknown: Any = "drop") -> Collected:
    return collect_source(InMemory(events, items), unknown, "refuse")  # type: ignore[arg-type]


def expected(events: list[tuple[Any, str]], items: list[str]) -> tuple[list[int], list[int]]:
    kept = [(user, items.index(item)) for user, item in events if item in items]
    users = list(dict.fromkeys(user for user, _ in kept))
    return [users.index(user) for user, _ in kept], [item for _, item in kept]


def assert_as_expected(events: list[tuple[Any, str]], items: list[str]) -> None:
    users, codes = expected(events, items)
    if not users:
        with pytest.raises(CatalexError, match="no interaction names an item"):
            collect(events, items)
        return
    found = collect(events, items).events
    assert found["user"].to_list() == users
    assert found["item_id"].to_list() == codes
    assert found.schema == {"user": pl.Int32, "item_id": pl.Int32, "timestamp": pl.Int64}


@given(EVENTS, st.lists(IDS, min_size=1, max_size=8, unique=True))
def test_users_count_from_the_first_event_and_items_are_rows(
    events: list[tuple[str, str]], items: list[str]
) -> None:
    assert_as_expected(events, items)


@given(EVENTS, st.lists(IDS, min_size=1, max_size=8, unique=True))
def test_colliding_hashes_are_found_and_change_nothing(
    events: list[tuple[str, str]], items: list[str]
) -> None:
    """With the length of an id for its hash nearly every two collide."""

    def weak(name: str) -> tuple[pl.Expr, pl.Expr]:
        text = pl.col(name)
        return text.str.len_chars().cast(pl.UInt64), real(name)[1]

    real = collecting._hashes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collecting, "_hashes", weak)
        assert_as_expected(events, items)


@pytest.mark.parametrize("which", ["user", "source_id"])
def test_one_collision_is_enough(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two users, or between a known and an unknown item: only the second hash tells."""
    events, items = [("u", "a"), ("v", "b"), ("w", "c"), ("u", "c")], ["c", "a"]
    again: list[int] = []
    real, collected = collecting._hashes, collecting._collected

    def clash(name: str) -> tuple[pl.Expr, pl.Expr]:
        first, check = real(name)
        other = pl.col(name).replace({"b": "a"} if name == "source_id" else {"v": "u"})
        return (other.hash(1), check) if name == which else (first, check)

    def counted(*values: Any) -> pl.DataFrame:
        again.append(1)
        return collected(*values)

    monkeypatch.setattr(collecting, "_collected", counted)
    assert_as_expected(events, items)
    assert len(again) == 1
    monkeypatch.setattr(collecting, "_hashes", clash)
    assert_as_expected(events, items)
    assert len(again) == 3, "the strings were read"


def test_whole_numbers_are_users_too() -> None:
    assert_as_expected([(2**60, "a"), (-4, "b"), (2**60, "b"), (7, "?")], ["b", "a"])


def test_the_two_hashes_differ() -> None:
    names = pl.DataFrame({"user": [f"USER{n}" for n in range(200_000)]})
    found = names.select(collecting._hashes("user"))
    low = found["user"] % 2**16
    assert found["user"].n_unique() == len(names)
    pairs = pl.DataFrame({"low": low, "check": found[CHECK + "user"] % 2**8}).group_by("low").agg("check")
    equal = sum(len(row) - len(set(row)) for row in pairs["check"].to_list())
    assert 600 < equal < 2400  # of 200,000 rows in 65,536 groups, one pair in 256 agrees in 8 other bits


def test_an_item_that_is_unknown_is_named() -> None:
    with pytest.raises(CatalexError, match=r"1 of 2 interactions .* first 'nowhere'"):
        collect([("u", "a"), ("u", "nowhere")], ["a"], "refuse")
