"""Placing one newcomer by the owners near it gives what `resolve` gives with all owners."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalex.errors import CatalexError
from catalex.serving.items import Item
from catalex.serving.placing import place
from catalex.serving.shelf import Shelf
from catalex.tokenizers import Tokenizer, TokenizerDomain, make_tokenizer
from catalex.tokenizers.conflicts import METHODS, Method, resolve
from support.worlds import ring

SIZE, LEVELS = 3, 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    vectors = np.random.default_rng(0).standard_normal((60, 6)).astype(np.float32)
    found = make_tokenizer({"name": "rqkmeans", "levels": LEVELS, "codebook_size": SIZE})
    world = ring()
    found.fit([TokenizerDomain("d", vectors, world.training, world.split_id)], seed=0, device="cpu")
    return found


class Turned:
    """A tokenizer whose identifiers are written in another order than they are chosen in (UniTok's way)."""

    order = (2, 0, 1)

    def __init__(self, inner: Tokenizer) -> None:
        self._inner, self.space = inner, inner.space

    def encode(self, vectors):  # type: ignore[no-untyped-def]
        return self._inner.encode(vectors)[:, [1, 2, 0]]

    def distances(self, vectors, prefix):  # type: ignore[no-untyped-def]
        return self._inner.distances(vectors, prefix)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    owned=st.integers(0, SIZE**LEVELS),
    turned=st.booleans(),
    crowd=st.booleans(),
)
def test_the_same_as_resolve(tokenizer: Tokenizer, seed: int, owned: int, turned: bool, crowd: bool) -> None:
    rng = np.random.default_rng(seed)
    used = Turned(tokenizer) if turned else tokenizer
    vectors = rng.standard_normal((1, 6)).astype(np.float32)
    codes = used.encode(vectors)
    every = np.stack(np.unravel_index(np.arange(SIZE**LEVELS), (SIZE,) * LEVELS), 1).astype(np.int32)
    if crowd:  # the owners stand as near as they can
        order = list(used.order)
        shared = np.cumprod(every[:, order] == codes[:, order], axis=1).sum(1)
        every = every[np.argsort(-shared, kind="stable")]
    else:
        every = rng.permutation(every)
    shelf = Shelf(LEVELS)
    for number, row in enumerate(every[:owned].tolist()):
        shelf.put(Item(f"#{number}", number, tuple(row), "t", "t"))
    if owned == SIZE**LEVELS:
        with pytest.raises(CatalexError, match="more items than identifiers"):
            place(used, vectors, codes, "reassign", shelf)  # type: ignore[arg-type]
        return
    expected = resolve(used, vectors, codes, reserved=every[:owned])  # type: ignore[arg-type]
    found = place(used, vectors, codes, "reassign", shelf)  # type: ignore[arg-type]
    assert found.tolist() == expected.tolist()
    assert tuple(found[0].tolist()) not in {tuple(row) for row in every[:owned].tolist()}


@pytest.mark.parametrize("method", [m for m in METHODS if m != "none"])
@pytest.mark.parametrize("count", [1, 5])
def test_digits_and_several_at_once(tokenizer: Tokenizer, method: Method, count: int) -> None:
    rng = np.random.default_rng(1)
    shelf = Shelf(LEVELS + (method == "digit"))
    for number in range(10):
        vectors = np.repeat(rng.standard_normal((1 + number % 3, 6)), 1, 0).astype(np.float32)[:count]
        codes = tokenizer.encode(vectors)
        expected = resolve(tokenizer, vectors, codes, method=method, reserved=shelf.owned())
        found = place(tokenizer, vectors, codes, method, shelf)
        assert found.tolist() == expected.tolist()
        for row in found.tolist():
            shelf.put(Item(f"#{shelf.size}", shelf.size, tuple(row), "t", "t"))
