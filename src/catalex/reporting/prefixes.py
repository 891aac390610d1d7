"""Which items do the identifiers call alike? For some items, those that share most of their first codes.

``N`` items, ``L`` codes an item.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from catalex.reporting.thumbnails import Pictures
from catalex.types import Codes, Ints

QUERIES = 4
"""Items of a domain that are asked about."""
MOST = 6
"""Items shown beside each."""


@dataclass(frozen=True)
class Alike:
    """The items whose identifiers begin as that of one item.

    Attributes:
        item: The item asked about.
        sharing: For each depth d from 1 to L, how many *other* items share its first d codes.
        items: Some of them, those that share most codes first; among equals in random order.
        depths: How many first codes each of `items` shares, at least 1.
    """

    item: int
    sharing: tuple[int, ...]
    items: tuple[int, ...]
    depths: tuple[int, ...]


def alike(codes: Codes, item: int, most: int, generator: np.random.Generator) -> Alike:
    """At most `most` items that share the longest beginning of the identifier of `item`.

    Where fewer than `most` share the longest one, those that share a shorter one follow.

    Args:
        codes: ``(N, L)`` identifiers.
        item: Row of `codes`.
        most: Items wanted.
        generator: Orders items that share equally many codes, which the identifiers do not tell apart.

    >>> codes = np.array([[1, 2, 3], [1, 2, 4], [1, 5, 3], [2, 2, 3]])
    >>> alike(codes, 0, 6, np.random.default_rng(0))
    Alike(item=0, sharing=(2, 1, 0), items=(1, 2), depths=(2, 1))
    """
    shared = (codes == codes[item]).cumprod(axis=1).sum(axis=1)
    shared[item] = 0
    sharing = tuple(int((shared >= depth).sum()) for depth in range(1, codes.shape[1] + 1))
    shuffled = generator.permutation(len(codes))
    order = shuffled[np.argsort(-shared[shuffled], kind="stable")][: min(most, sharing[0])]
    return Alike(item, sharing, tuple(order.tolist()), tuple(shared[order].tolist()))


def choose_queries(items: int, count: int, generator: np.random.Generator, among: Ints | None = None) -> Ints:
    """At most `count` random items, ascending; of `among` (such as the items with an image) if it has any."""
    candidates = among if among is not None and len(among) else np.arange(items)
    return np.sort(generator.choice(candidates, min(count, len(candidates)), replace=False))


def show(found: Alike, codes: Codes, titles: Sequence[str], pictures: Pictures | None) -> dict[str, Any]:
    """One item with its neighbours as plain values, see `catalex.reporting.structure.Prefix`."""

    def card(item: int) -> dict[str, Any]:
        picture = None if pictures is None else pictures.of(item)
        return {"title": titles[item], **({"picture": picture} if picture else {})}

    return {
        "codes": codes[found.item].tolist(),
        "sharing": list(found.sharing),
        **card(found.item),
        "items": [
            {**card(item), "depth": depth} for item, depth in zip(found.items, found.depths, strict=True)
        ],
    }
