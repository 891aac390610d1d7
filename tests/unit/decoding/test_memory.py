"""Buffers that stay between searches: the same numbers, no two searches in one buffer."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from catalex.decoding import Trie, beam_search, memory
from catalex.decoding.forward import Past, encode, step
from catalex.decoding.memory import Memory, borrowed
from catalex.decoding.weights import weights_of
from catalex.models.t5 import T5, T5Options

OPTIONS = T5Options(layers=2, hidden=16, feed_forward=32, heads=2, head_width=8)
ROWS = np.stack(np.meshgrid(*[np.arange(4)] * 3), -1).reshape(-1, 3) + np.array([1, 5, 9])


@pytest.fixture(scope="module")
def model() -> T5:
    torch.manual_seed(0)
    return T5(14, OPTIONS).eval()


@pytest.fixture(autouse=True)
def none_free() -> Iterator[None]:
    kept, memory._free[:] = memory._free[:], []
    yield
    memory._free[:] = kept


def test_products_are_those_of_torch_and_their_places_are_kept() -> None:
    own = Memory()
    left, right = torch.randn(5, 4), torch.randn(4, 7)
    first = own.product(left, right, "a")
    torch.testing.assert_close(first, left @ right)
    other = own.product(left[:2], right, "b")
    assert own.product(left[:3], right[:, :5].contiguous(), "a").data_ptr() == first.data_ptr()
    torch.testing.assert_close(other, left[:2] @ right)
    larger = own.product(torch.ones(9, 4), right, "a")
    assert larger.data_ptr() != first.data_ptr()
    assert own.product(left.bfloat16(), right.bfloat16(), "a").dtype == torch.bfloat16


def test_what_was_made_within_inference_serves_without_it() -> None:
    own = Memory()
    left, right = torch.randn(5, 4), torch.randn(4, 7)
    with torch.inference_mode():
        own.product(left, right, "a")
    torch.testing.assert_close(own.product(left, right, "a"), left @ right)


def test_large_products_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LARGEST", 100)
    own = Memory()
    left, right = torch.randn(5, 4), torch.randn(4, 7)
    first, again = own.product(left, right, "a"), own.product(left, right, "a")
    assert first.data_ptr() != again.data_ptr()
    assert not own._buffers


def test_two_borrowers_never_share_and_a_fault_gives_back() -> None:
    with borrowed() as one, borrowed() as other:
        assert one is not other
    with borrowed() as again:
        assert again in (one, other)
    with pytest.raises(ZeroDivisionError), borrowed():
        raise ZeroDivisionError
    assert len(memory._free) == 2


def test_only_some_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MOST", 1)
    with borrowed(), borrowed():
        pass
    assert len(memory._free) == 1


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 4])
def test_encoded_histories_do_not_stand_in_borrowed_memory(model: T5, length: int) -> None:
    """One token of one user is in order already and would be no copy."""
    own, weights = Memory(), weights_of(model, torch.float32)
    first = encode(weights, torch.full((1, length), 3), own)
    before = [keys.clone() for pair in first.layers for keys in pair]
    encode(weights, torch.full((1, length), 5), own)
    step(weights, torch.zeros(1, 1, dtype=torch.long), Past([], [], own), first)
    assert all(
        torch.equal(a, b) for a, b in zip(before, [k for pair in first.layers for k in pair], strict=True)
    )


def test_searches_of_several_threads_and_sizes_are_what_each_is_alone(model: T5) -> None:
    trie = Trie(ROWS)
    random = torch.Generator().manual_seed(1)
    asked = [torch.randint(1, 13, (1 + n % 3, 1 + n % 7), generator=random) for n in range(24)]

    def search(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = beam_search(model, tokens, trie, beam=9, k=5)
        return found.items, found.scores

    alone = [search(tokens) for tokens in asked]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(search, asked * 4))
    for number, (items, scores) in enumerate(together):
        assert torch.equal(items, alone[number % 24][0])
        torch.testing.assert_close(scores, alone[number % 24][1], rtol=0, atol=1e-5)
    assert 1 <= len(memory._free) <= memory.MOST
