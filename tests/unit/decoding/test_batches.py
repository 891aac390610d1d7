"""`search_all`: any number of histories, in batches that change nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from catalex.decoding import ABSENT, Trie, beam_search, search_all
from catalex.errors import CatalexError
from catalex.models.t5 import T5, T5Options


@pytest.fixture(scope="module")
def model() -> T5:
    torch.manual_seed(4)
    return T5(20, T5Options(layers=1, hidden=16, feed_forward=16, heads=2, head_width=8)).eval()


@pytest.fixture(scope="module")
def trie() -> Trie:
    generator = np.random.default_rng(8)
    rows = generator.integers(1, 7, (40, 3)) + np.array([0, 6, 12])
    return Trie(generator.permutation(np.unique(rows, axis=0)))


@pytest.fixture(scope="module")
def histories() -> list[np.ndarray]:
    generator = np.random.default_rng(9)
    return [generator.integers(1, 20, length) for length in generator.integers(1, 12, 17)]


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_batches_change_nothing_and_keep_the_order(
    model: T5, trie: Trie, histories: list, batch_size: int
) -> None:
    done: list[int] = []
    found = search_all(model, histories, trie, beam=5, k=5, batch_size=batch_size, progress=done.append)
    assert sum(done) == len(histories)
    assert len(done) == -(-len(histories) // batch_size)
    for i, history in enumerate(histories):
        alone = beam_search(model, torch.from_numpy(history).unsqueeze(0), trie, beam=5, k=5)
        assert torch.equal(found.items[i], alone.items[0])
        torch.testing.assert_close(found.scores[i], alone.scores[0], rtol=1e-6, atol=1e-6)


def test_masks_follow_their_history(model: T5, trie: Trie, histories: list) -> None:
    allowed = np.random.default_rng(1).random((len(histories), trie.size)) < 0.2
    found = search_all(model, histories, trie, beam=50, k=50, allowed=allowed, batch_size=4)
    for line, mask in zip(found.items, allowed, strict=True):
        assert sorted(line[line != ABSENT].tolist()) == np.flatnonzero(mask).tolist()
    shared = search_all(model, histories, trie, beam=50, k=50, allowed=allowed[0], batch_size=4)
    assert all(set(line.tolist()) <= {ABSENT, *np.flatnonzero(allowed[0])} for line in shared.items)


def test_no_histories(model: T5, trie: Trie) -> None:
    assert search_all(model, [], trie, beam=5, k=5).items.shape == (0, 5)


def test_scores_that_are_not_numbers_are_an_error(trie: Trie, histories: list) -> None:
    broken = T5(20, T5Options(layers=1, hidden=16, feed_forward=16, heads=2, head_width=8))
    torch.nn.init.constant_(broken.decoder_norm.weight, float("nan"))
    with pytest.raises(FloatingPointError, match="not numbers"):
        search_all(broken, histories, trie, beam=5, k=5)


def test_bad_input_gets_a_sentence(model: T5, trie: Trie) -> None:
    with pytest.raises(CatalexError, match=r"history 1: the history is empty\. Give at least the end token"):
        search_all(model, [[1], []], trie, beam=5, k=5)
    with pytest.raises(
        CatalexError, match=r"history 1: a token is not in the vocabulary \(found 0; allowed: 1 to 19\)"
    ):
        search_all(model, [[1, 2], [3, 0]], trie, beam=5, k=5)
    with pytest.raises(CatalexError, match=r"history 0: a token is not in the vocabulary \(found 20"):
        search_all(model, [[20], [3]], trie, beam=5, k=5)
    with pytest.raises(CatalexError, match=r"batch_size: .* \(found 0\)"):
        search_all(model, [[1]], trie, beam=5, k=5, batch_size=0)
    with pytest.raises(CatalexError, match=r"k: .* must be positive"):
        search_all(model, [], trie, beam=5, k=-1)
    with pytest.raises(CatalexError, match=r"allowed: the mask has another number of histories"):
        search_all(model, [[1]], trie, beam=5, k=5, allowed=np.ones((2, trie.size), bool))
