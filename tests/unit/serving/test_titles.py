"""Search by words: fast blocks against a look at every item."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from catalex.serving import titles
from catalex.serving.items import Item
from catalex.serving.titles import START, Titles, search

TEXTS = st.text(alphabet="aAbß \nİ" + START, min_size=1, max_size=6)


def slow(items: list[Item | None], words: str, limit: int) -> list[int]:
    """One after another."""
    wanted = words.casefold().split()
    first: list[int] = []
    later: list[int] = []
    for item in items:
        if item is None:
            continue
        folded = f"{item.title}\n{item.key}".replace(START, " ").casefold()
        if all(word in folded for word in wanted):
            begins = not wanted or folded.startswith(wanted[0])
            (first if begins else later).append(item.number)
    return (first + later)[:limit]


@given(
    st.lists(st.none() | st.tuples(TEXTS, TEXTS), max_size=12),
    st.lists(st.tuples(st.integers(0, 11), st.none() | TEXTS), max_size=5),
    st.text(alphabet="abs i", max_size=5),
    st.integers(0, 6),
)
def test_blocks_find_what_a_look_at_every_item_finds(
    rows: list[tuple[str, str] | None], changes: list[tuple[int, str | None]], words: str, limit: int
) -> None:
    items = [None if row is None else Item(row[1], n, (0,), row[0], "") for n, row in enumerate(rows)]
    before, titles.BLOCK = titles.BLOCK, 4
    try:
        found = Titles(items)
        for number in range(len(items)):
            found.changed(number)
        assert search(found.blocks(), words, limit) == slow(items, words, limit)
        for number, title in changes:
            if number < len(items):
                items[number] = None if title is None else Item(f"k{number}", number, (0,), title, "")
                found.changed(number)
                assert search(found.blocks(), words, limit) == slow(items, words, limit)
    finally:
        titles.BLOCK = before


def test_a_search_that_goes_on_sees_the_items_of_its_beginning() -> None:
    items: list[Item | None] = [Item("a", 0, (0,), "red mug", "")]
    found = Titles(items)
    found.changed(0)
    blocks = found.blocks()
    items[0] = None
    found.changed(0)
    assert search(blocks, "red", 5) == [0]
    assert search(found.blocks(), "red", 5) == []


def test_only_what_has_changed_is_made_anew() -> None:
    items: list[Item | None] = [Item(str(n), n, (0,), "mug", "") for n in range(2 * titles.BLOCK)]
    found = Titles(items)
    for number in range(len(items)):
        found.changed(number)
    one, two = found.blocks()
    found.changed(titles.BLOCK + 3)
    again, other = found.blocks()
    assert again is one
    assert other is not two
