"""`Titles`: items found by words of their title or key, in a catalogue of any size.

Folded titles lie in texts of `BLOCK` items each, which the interpreter searches at the speed of memory: a
million titles take some 50 ms where a look at one after another takes half a second. A change spoils the text
of one block, which is made anew by the next search.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from catalex.serving.items import Item

BLOCK = 4096
"""Items of a text: made anew in a millisecond."""
START = "\x02"
"""Stands before every item; cannot be asked for, since it is taken out of what is folded."""


@dataclass(frozen=True)
class Block:
    """Some items as one text; `starts` has the place of each in it."""

    text: str
    starts: array[int]
    numbers: array[int]

    @classmethod
    def of(cls, items: Sequence[Item | None], first: int) -> Block:
        """Of items by number, the first of which has the number `first`."""
        parts, starts, numbers, place = list[str](), array("l"), array("l"), 0
        for number, item in enumerate(items, first):
            if item is not None:
                folded = f"{item.title}\n{item.key}".replace(START, " ").casefold()
                parts.append(START + folded)
                starts.append(place)
                numbers.append(number)
                place += len(folded) + 1
        return cls("".join(parts), starts, numbers)

    def places(self, word: str) -> Iterator[int]:
        """Place of each item that has `word`, ascending. A word that begins with `START` is looked for at the
        beginning of titles alone."""
        at = self.text.find(word)
        while at >= 0:
            place = bisect_right(self.starts, at) - 1
            yield place
            at = self.text.find(word, self._end(place))

    def has(self, place: int, words: Sequence[str]) -> bool:
        """Whether an item has all words."""
        start, end = self.starts[place], self._end(place)
        return all(self.text.find(word, start, end) >= 0 for word in words)

    def _end(self, place: int) -> int:
        return self.starts[place + 1] if place + 1 < len(self.starts) else len(self.text)


class Titles:
    """Texts of the items of a list that its owner changes.

    Args:
        items: By number; the list itself, not a copy.
    """

    def __init__(self, items: list[Item | None]) -> None:
        self._items = items
        self._blocks: list[Block | None] = []

    def changed(self, number: int) -> None:
        """An item came, went, or has another title."""
        block = number // BLOCK
        self._blocks.extend([None] * (block + 1 - len(self._blocks)))
        self._blocks[block] = None

    def blocks(self) -> list[Block]:
        """The texts as of now, which never change: to be searched while items come and go."""
        found = []
        for place, known in enumerate(self._blocks):
            block = known
            if block is None:
                first = place * BLOCK
                block = self._blocks[place] = Block.of(self._items[first : first + BLOCK], first)
            found.append(block)
        return found


def search(blocks: Sequence[Block], words: str, limit: int) -> list[int]:
    """Numbers of items whose title or key has every word, whatever the case, by number; those whose title
    begins with the first word come first."""
    wanted = words.casefold().split()
    first: list[int] = []
    later: list[int] = []
    for block in blocks:
        if len(first) >= limit:
            break
        if not wanted:
            first += block.numbers[: limit - len(first)]
            continue
        if not all(word in block.text for word in wanted):
            continue
        begin = [p for p in block.places(START + wanted[0]) if block.has(p, wanted[1:])]
        first += [block.numbers[place] for place in begin]
        if len(later) < limit:
            beginning = set(begin)
            for place in block.places(wanted[0]):
                if place not in beginning and block.has(place, wanted[1:]):
                    later.append(block.numbers[place])
                    if len(later) == limit:
                        break
    return (first + later)[: max(limit, 0)]
