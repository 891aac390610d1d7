"""Properties of the beam search that need no oracle: validity, masks, batching, growth, and refused input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from catalex.decoding import ABSENT, Trie, beam_search
from catalex.errors import CatalexError
from catalex.models.t5 import T5, T5Options

VOCABULARY = 26


@pytest.fixture(scope="module")
def model() -> T5:
    torch.manual_seed(3)
    return T5(VOCABULARY, T5Options(layers=2, hidden=16, feed_forward=32, heads=2, head_width=8)).eval()


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    generator = np.random.default_rng(5)
    rows = np.unique(generator.integers(0, 8, (60, 3)) + np.array([1, 9, 17]), axis=0)
    return generator.permutation(rows)


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    generator = np.random.default_rng(6)
    padded = np.zeros((5, 9), np.int64)
    for line, length in zip(padded, (9, 1, 4, 6, 2), strict=True):
        line[:length] = generator.integers(1, VOCABULARY, length)
    return torch.from_numpy(padded)


def test_rankings_are_valid_distinct_and_ordered(model: T5, rows: np.ndarray, tokens: torch.Tensor) -> None:
    found = beam_search(model, tokens, Trie(rows), beam=10, k=10)
    assert found.items.shape == found.scores.shape == (5, 10)
    assert found.items.dtype == torch.int64
    assert found.scores.dtype == torch.float32
    assert ((found.items >= 0) & (found.items < len(rows))).all()
    assert all(len(set(line)) == 10 for line in found.items.tolist())
    assert (found.scores.diff(dim=1) <= 0).all()
    assert (found.scores < 0).all()


def test_a_short_catalogue_ends_early(model: T5, rows: np.ndarray, tokens: torch.Tensor) -> None:
    found = beam_search(model, tokens, Trie(rows[:4]), beam=7, k=6)
    assert all(sorted(line) == [0, 1, 2, 3] for line in found.items[:, :4].tolist())
    assert (found.items[:, 4:] == ABSENT).all()
    assert (found.scores[:, 4:] == -torch.inf).all()
    assert found.scores[:, :4].isfinite().all()


def test_an_empty_catalogue_or_batch_gives_nothing(model: T5, rows: np.ndarray, tokens: torch.Tensor) -> None:
    assert (beam_search(model, tokens, Trie(rows[:0]), beam=3, k=3).items == ABSENT).all()
    assert beam_search(model, tokens[:0], Trie(rows), beam=3, k=3).items.shape == (0, 3)


@pytest.mark.parametrize("beam", [6, 100])
def test_neither_batch_nor_padding_changes_a_result(
    model: T5, rows: np.ndarray, tokens: torch.Tensor, beam: int
) -> None:
    trie = Trie(rows)
    together = beam_search(model, tokens, trie, beam=beam, k=6)
    order = torch.tensor([4, 2, 0, 1, 3])
    padded = torch.nn.functional.pad(tokens[order], (0, 7))
    shuffled = beam_search(model, padded, trie, beam=beam, k=6)
    assert torch.equal(shuffled.items, together.items[order])
    torch.testing.assert_close(shuffled.scores, together.scores[order], rtol=1e-6, atol=1e-6)
    for i, history in enumerate(tokens):
        alone = beam_search(model, history[history != 0].unsqueeze(0), trie, beam=beam, k=6)
        assert torch.equal(alone.items[0], together.items[i])
        torch.testing.assert_close(alone.scores[0], together.scores[i], rtol=1e-6, atol=1e-6)


def test_exactly_the_allowed_items_come_out(model: T5, rows: np.ndarray, tokens: torch.Tensor) -> None:
    trie = Trie(rows)
    allowed = torch.rand(5, len(rows), generator=torch.Generator().manual_seed(1)) < 0.15
    allowed[3] = False
    found = beam_search(model, tokens, trie, beam=len(rows), k=len(rows), allowed=allowed)
    for line, mask in zip(found.items, allowed, strict=True):
        assert sorted(line[line != ABSENT].tolist()) == mask.nonzero().flatten().tolist()
    narrow = beam_search(model, tokens, trie, beam=3, k=3, allowed=allowed)
    counts = (narrow.items != ABSENT).sum(dim=1)
    assert counts.tolist() == allowed.sum(dim=1).clamp(max=3).tolist()
    assert all(allowed[u, i] for u, line in enumerate(narrow.items.tolist()) for i in line if i != ABSENT)


def test_one_mask_for_all_equals_the_mask_repeated(model: T5, rows: np.ndarray, tokens: torch.Tensor) -> None:
    mask = torch.arange(len(rows)) % 3 == 0
    one = beam_search(model, tokens, Trie(rows), beam=8, k=8, allowed=mask)
    each = beam_search(model, tokens, Trie(rows), beam=8, k=8, allowed=mask.repeat(5, 1))
    assert torch.equal(one.items, each.items)
    assert torch.equal(one.scores, each.scores)


def test_a_mask_equals_a_catalogue_of_the_allowed_items(
    model: T5, rows: np.ndarray, tokens: torch.Tensor
) -> None:
    """A mask must restrict the search, not filter its results: masked-out items use up no beam."""
    kept = np.flatnonzero(np.arange(len(rows)) % 4 == 1)
    mask = torch.zeros(len(rows), dtype=torch.bool)
    mask[kept] = True
    masked = beam_search(model, tokens, Trie(rows), beam=4, k=4, allowed=mask)
    smaller = beam_search(model, tokens, Trie(rows[kept]), beam=4, k=4)
    assert torch.equal(masked.items, torch.from_numpy(kept)[smaller.items])
    torch.testing.assert_close(masked.scores, smaller.scores, rtol=1e-6, atol=1e-6)


def test_removed_items_never_come_out(model: T5, rows: np.ndarray, tokens: torch.Tensor) -> None:
    trie = Trie(rows)
    best = beam_search(model, tokens, trie, beam=len(rows), k=1).items[:, 0]
    trie.remove(best.unique().tolist())
    found = beam_search(model, tokens, trie, beam=len(rows), k=len(rows))
    assert not torch.isin(found.items, best).any()
    assert all((line != ABSENT).sum() == len(trie) for line in found.items)


def test_added_items_can_be_found_and_old_scores_stay(
    model: T5, rows: np.ndarray, tokens: torch.Tensor
) -> None:
    trie = Trie(rows[:30])
    before = beam_search(model, tokens, trie, beam=100, k=30)
    trie.add(rows[30:])
    after = beam_search(model, tokens, trie, beam=100, k=len(rows))
    for u in range(len(tokens)):
        old = dict(zip(before.items[u].tolist(), before.scores[u].tolist(), strict=True))
        new = dict(zip(after.items[u].tolist(), after.scores[u].tolist(), strict=True))
        assert set(new) == set(range(len(rows)))
        assert {item: new[item] for item in old} == pytest.approx(old, abs=2e-6)
        kept = [item for item in after.items[u].tolist() if item < 30]
        assert kept == before.items[u].tolist()


def test_equal_scores_are_ordered_by_item(rows: np.ndarray, tokens: torch.Tensor) -> None:
    flat = T5(VOCABULARY, T5Options(layers=1, hidden=8, feed_forward=8, heads=1, head_width=8))
    torch.nn.init.zeros_(flat.embedding.weight)
    found = beam_search(flat, tokens, Trie(rows), beam=len(rows), k=9)
    assert found.items.tolist() == [list(range(9))] * 5
    torch.testing.assert_close(found.scores, torch.full((5, 9), -3 * float(np.log(VOCABULARY))))


def test_dropout_is_off_and_the_mode_is_restored(model: T5, rows: np.ndarray, tokens: torch.Tensor) -> None:
    expected = beam_search(model, tokens, Trie(rows), beam=5, k=5)
    model.train()
    try:
        found = beam_search(model, tokens, Trie(rows), beam=5, k=5)
        assert model.training
        model.loss(
            tokens, tokens[:, :3]
        ).backward()  # what the search left in the model can be differentiated
    finally:
        model.eval()
        model.zero_grad()
    assert torch.equal(found.items, expected.items)
    assert torch.equal(found.scores, expected.scores)


def test_bf16_scores_are_near(model: T5, rows: np.ndarray, tokens: torch.Tensor) -> None:
    exact = beam_search(model, tokens, Trie(rows), beam=100, k=len(rows))
    near = beam_search(model, tokens, Trie(rows), beam=100, k=len(rows), precision="bf16")
    assert near.scores.dtype == torch.float32
    by_item = [line.scores.gather(1, line.items.argsort(dim=1)) for line in (exact, near)]
    assert not torch.equal(*by_item)
    torch.testing.assert_close(*by_item, rtol=0, atol=0.2)


@pytest.mark.gpu
def test_cuda_equals_cpu(model: T5, rows: np.ndarray, tokens: torch.Tensor) -> None:
    mask = torch.arange(len(rows)) % 3 != 0
    expected = beam_search(model, tokens, Trie(rows), beam=8, k=8, allowed=mask)
    model.to("cuda")
    try:
        found = beam_search(model, tokens.cuda(), Trie(rows), beam=8, k=8, allowed=mask.cuda())
    finally:
        model.to("cpu")
    assert torch.equal(found.items.cpu(), expected.items)
    torch.testing.assert_close(found.scores.cpu(), expected.scores, rtol=1e-5, atol=1e-5)


def test_bad_input_gets_a_sentence(model: T5, rows: np.ndarray, tokens: torch.Tensor) -> None:
    trie = Trie(rows)
    with pytest.raises(CatalexError, match=r"k: the number of items wanted must be positive \(found 0\)"):
        beam_search(model, tokens, trie, beam=3, k=0)
    with pytest.raises(CatalexError, match=r"beam: the beam is narrower .* \(found 3; allowed: 4 or more\)"):
        beam_search(model, tokens, trie, beam=3, k=4)
    with pytest.raises(CatalexError, match=r"tokens: histories must be .* \(found \(5, 0\)\)"):
        beam_search(model, tokens[:, :0], trie, beam=3, k=3)
    with pytest.raises(CatalexError, match=r"allowed: the item mask has .* \(found 'torch.bool \(3,\)'"):
        beam_search(model, tokens, trie, beam=3, k=3, allowed=torch.ones(3, dtype=torch.bool))
    with pytest.raises(
        CatalexError, match=r"tokens that the model does not have \(found 26; allowed: below 26\)"
    ):
        beam_search(model, tokens, Trie(rows + np.array([0, 0, 2])), beam=3, k=3)
