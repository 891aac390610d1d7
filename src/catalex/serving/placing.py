"""Identifiers for newcomers: the conflict rule against the items that a shelf holds.

The rule is `tokenizers.conflicts.resolve` with the identifiers of all items reserved. For a single newcomer
the answer depends only on the owners below the longest prefix of its codes that still has room, so it is
enough to hand those to `resolve`: the same identifier, without sorting a million others.
"""

from __future__ import annotations

import math

from catalex.serving.shelf import Shelf
from catalex.tokenizers import Tokenizer
from catalex.tokenizers.conflicts import Method, check_room, resolve
from catalex.types import Codes, Floats


def place(tokenizer: Tokenizer, vectors: Floats, codes: Codes, method: Method, shelf: Shelf) -> Codes:
    """Free identifiers ``(N, L)``, with "digit" ``(N, L + 1)``, for new items; those of the shelf never move.

    Args:
        vectors: ``(N, D)`` what the tokenizer quantizes.
        codes: ``(N, L)`` its codes.

    Raises:
        CatalexError: When no identifier is left.
    """
    if len(codes) != 1:
        return resolve(tokenizer, vectors, codes, method=method, reserved=shelf.owned())
    own = codes[0].tolist()
    order = list(tokenizer.order)
    if method == "digit":
        reserved = shelf.codes(shelf.under(order, [own[position] for position in order]))
        return resolve(tokenizer, vectors, codes, method=method, reserved=reserved)
    check_room(tokenizer.space, len(shelf) + 1, method, "adding an item")
    for depth in range(len(order), -1, -1):
        numbers = shelf.under(order[:depth], [own[position] for position in order[:depth]])
        room = math.prod(tokenizer.space.sizes[position] for position in order[depth:])
        if len(numbers) < room:
            return resolve(tokenizer, vectors, codes, method=method, reserved=shelf.codes(numbers))
    raise AssertionError("check_room refused this")
