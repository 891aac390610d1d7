"""The engine against `beam_search`, through the captured program in torch (no GPU needed) and the
fallback."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from catalex.decoding import ABSENT, Trie, beam_search
from catalex.decoding.engine import Engine
from catalex.decoding.engine.engine import Kind
from catalex.errors import CatalexError
from catalex.models.t5 import T5, T5Options

VOCABULARY = 26
KINDS: list[Kind] = ["beam", "plain"]


@pytest.fixture(scope="module")
def model() -> T5:
    return small_model(3)


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return catalogue(5, 60, 8)


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return histories(6, (9, 1, 4, 6, 2))


def small_model(seed: int) -> T5:
    torch.manual_seed(seed)
    return T5(VOCABULARY, T5Options(layers=2, hidden=16, feed_forward=32, heads=2, head_width=8)).eval()


def catalogue(seed: int, count: int, codes: int, levels: int = 3) -> np.ndarray:
    generator = np.random.default_rng(seed)
    rows = np.unique(generator.integers(0, codes, (count, levels)) + 1 + 8 * np.arange(levels), axis=0)
    return generator.permutation(rows)


def histories(seed: int, lengths: tuple[int, ...]) -> torch.Tensor:
    generator = np.random.default_rng(seed)
    padded = np.zeros((len(lengths), max(lengths)), np.int64)
    for line, length in zip(padded, lengths, strict=True):
        line[:length] = generator.integers(1, VOCABULARY, length)
    return torch.from_numpy(padded)


def same(found: Any, expected: Any) -> None:
    assert torch.equal(found.items, expected.items)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    count=st.integers(1, 80),
    codes=st.integers(1, 8),
    levels=st.integers(1, 3),
    k=st.integers(1, 12),
    wider=st.integers(0, 60),
    share=st.sampled_from([None, 0.0, 0.2, 0.8]),
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4),
)
def test_the_program_finds_what_the_search_finds(
    seed: int,
    count: int,
    codes: int,
    levels: int,
    k: int,
    wider: int,
    share: float | None,
    lengths: list[int],
) -> None:
    model, trie = small_model(seed % 7), Trie(catalogue(seed, count, codes, levels))
    tokens = histories(seed, tuple(lengths))
    allowed = None
    if share is not None:
        allowed = torch.from_numpy(np.random.default_rng(seed).random((len(tokens), trie.size)) < share)
    engine = Engine(model, trie, beam=k + wider, k=k, kind="plain")
    expected = beam_search(model, tokens, trie, beam=k + wider, k=k, allowed=allowed)
    same(engine.search(tokens, allowed=allowed), expected)
    if allowed is not None:
        out = torch.arange(trie.size).where(~allowed, ABSENT)
        same(engine.search(tokens, excluded=out), expected)
        engine.set_filters(allowed.numpy())
        same(engine.search(tokens, filters=torch.arange(len(tokens))), expected)


@pytest.mark.parametrize("largest", [1024, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_several_batches_are_answered_in_their_order(
    model: T5,
    rows: np.ndarray,
    tokens: torch.Tensor,
    kind: Kind,
    largest: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[int] = []
    start = Engine._start
    monkeypatch.setattr("catalex.decoding.engine.engine.LARGEST", largest)
    monkeypatch.setattr(Engine, "_start", lambda self, t, r: (started.append(len(t)), start(self, t, r))[1])
    engine = Engine(model, Trie(rows), beam=6, k=4, kind=kind)
    excluded = torch.tensor([[0, 5, -1], [7, -1, -1], [1, 2, 3]])
    batches = [(tokens, None), (tokens[:3, :4], excluded), (tokens[:0], None), (tokens[1:3], None)]
    found = list(engine.search_each(iter(batches)))
    assert len(found) == len(batches)
    for answer, (histories, closed) in zip(found, batches, strict=True):
        same(answer, engine.search(histories, excluded=closed))
    with pytest.raises(CatalexError, match="vocabulary"):
        list(engine.search_each([(tokens + VOCABULARY, None)]))
    same(engine.search(tokens), found[0])  # the engine is free again
    assert all(users <= largest for users in started)
    assert bool(started) == (kind != "beam")


@pytest.mark.parametrize("kind", KINDS)
def test_one_mask_for_all_and_no_filter(
    model: T5, rows: np.ndarray, tokens: torch.Tensor, kind: Kind
) -> None:
    trie = Trie(rows)
    engine = Engine(model, trie, beam=8, k=8, kind=kind)
    mask = torch.arange(len(rows)) % 3 == 0
    same(engine.search(tokens, allowed=mask), beam_search(model, tokens, trie, beam=8, k=8, allowed=mask))
    engine.set_filters(mask[None].numpy())
    found = engine.search(tokens, filters=torch.tensor([-1, 0, -1, 0, -1]))
    same(
        found,
        beam_search(model, tokens, trie, beam=8, k=8, allowed=mask | (torch.arange(5) % 2 == 0)[:, None]),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_exclusions_that_name_nothing_or_repeat_themselves(
    model: T5, rows: np.ndarray, tokens: torch.Tensor, kind: Kind
) -> None:
    trie = Trie(rows)
    trie.remove([4])
    engine = Engine(model, trie, beam=8, k=8, kind=kind)
    best = engine.search(tokens).items[:, :2]
    excluded = torch.cat([best, best, torch.tensor([[ABSENT, len(rows), 4]] * 5)], dim=1)
    allowed = torch.ones(5, len(rows), dtype=torch.bool).scatter(1, best, False)
    same(engine.search(tokens, excluded=excluded), engine.search(tokens, allowed=allowed))


@pytest.mark.parametrize("kind", KINDS)
def test_a_filter_and_exclusions_together(
    model: T5, rows: np.ndarray, tokens: torch.Tensor, kind: Kind
) -> None:
    trie = Trie(rows)
    engine = Engine(model, trie, beam=9, k=9, kind=kind)
    mask = np.arange(len(rows)) % 2 == 0
    engine.set_filters(mask[None])
    found = engine.search(
        tokens, filters=torch.zeros(5, dtype=torch.long), excluded=torch.tensor([[2, 6]] * 5)
    )
    both = torch.from_numpy(mask & ~np.isin(np.arange(len(rows)), [2, 6]))
    same(found, beam_search(model, tokens, trie, beam=9, k=9, allowed=both))


@pytest.mark.parametrize("kind", KINDS)
def test_many_histories_come_back_in_their_order(
    model: T5, rows: np.ndarray, tokens: torch.Tensor, kind: Kind
) -> None:
    engine = Engine(model, Trie(rows), beam=8, k=5, kind=kind)
    done: list[int] = []
    lists = [line[line != 0].tolist() for line in tokens]
    found = engine.search_all(lists, batch_size=2, progress=done.append)
    same(found, beam_search(model, tokens, Trie(rows), beam=8, k=5))
    assert done == [2, 2, 1] or kind == "beam"


def test_equal_scores_are_ordered_by_item(rows: np.ndarray, tokens: torch.Tensor) -> None:
    flat = T5(VOCABULARY, T5Options(layers=1, hidden=8, feed_forward=8, heads=1, head_width=8)).eval()
    torch.nn.init.zeros_(flat.embedding.weight)
    for beam in (9, 20, len(rows)):
        found = Engine(flat, Trie(rows), beam=beam, k=9, kind="plain").search(tokens)
        assert torch.equal(found.items, beam_search(flat, tokens, Trie(rows), beam=beam, k=9).items)


@pytest.mark.parametrize("kind", KINDS)
def test_new_weights_count_after_a_refresh(rows: np.ndarray, tokens: torch.Tensor, kind: Kind) -> None:
    model, trie = small_model(1), Trie(rows)
    engine = Engine(model, trie, beam=8, k=5, kind=kind)
    before = engine.search(tokens)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    engine.refresh()
    after = engine.search(tokens)
    assert not torch.equal(after.scores, before.scores)
    same(after, beam_search(model, tokens, trie, beam=8, k=5))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [5, 60])
def test_the_engine_follows_a_catalogue_that_changes(
    model: T5, rows: np.ndarray, tokens: torch.Tensor, kind: Kind, first: int
) -> None:
    """With 5 items at first the rest outgrows the buffers; with 60 it fits the room that is left."""
    more = catalogue(9, 400, 8)
    fresh = more[[tuple(row) not in {tuple(old) for old in rows} for row in more.tolist()]]
    trie = Trie(rows[:first])
    engine = Engine(model, trie, beam=12, k=12, kind=kind)
    engine.search(tokens)
    trie.add(fresh[:10])
    same(engine.search(tokens), beam_search(model, tokens, trie, beam=12, k=12))
    trie.add(fresh[10:])
    trie.remove([0, 3])
    same(engine.search(tokens), beam_search(model, tokens, trie, beam=12, k=12))


@pytest.mark.parametrize("kind", KINDS)
def test_items_added_later_are_in_no_filter(
    model: T5, rows: np.ndarray, tokens: torch.Tensor, kind: Kind
) -> None:
    trie = Trie(rows[:40])
    engine = Engine(model, trie, beam=50, k=50, kind=kind)
    engine.set_filters(np.ones((1, 40), bool))
    trie.add(rows[40:])
    chosen = torch.tensor([0, -1, 0, -1, 0])
    found = engine.search(tokens, filters=chosen)
    counts = (found.items != ABSENT).sum(dim=1)
    assert counts.tolist() == [40, 50, 40, 50, 40] if len(rows) >= 50 else counts[0] == 40
    assert (found.items[0] < 40).all()


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_catalogue_gives_nothing(
    model: T5, rows: np.ndarray, tokens: torch.Tensor, kind: Kind
) -> None:
    trie = Trie(rows[:0])
    engine = Engine(model, trie, beam=3, k=3, kind=kind)
    assert (engine.search(tokens).items == ABSENT).all()
    assert engine.search(tokens[:0]).items.shape == (0, 3)
    trie.add(rows)
    same(engine.search(tokens), beam_search(model, tokens, trie, beam=3, k=3))


def test_large_batches_are_split(
    model: T5, rows: np.ndarray, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model, Trie(rows), beam=6, k=4, kind="plain")
    monkeypatch.setattr("catalex.decoding.engine.engine.LARGEST", 2)
    excluded = torch.arange(5)[:, None]
    allowed = ~torch.eye(len(rows), dtype=torch.bool)[:5]
    expected = beam_search(model, tokens, Trie(rows), beam=6, k=4, allowed=allowed)
    same(engine.search(tokens, excluded=excluded), expected)
    same(engine.search(tokens, allowed=allowed), expected)


def test_a_cpu_gets_the_search_that_runs_anywhere(model: T5, rows: np.ndarray) -> None:
    assert Engine(model, Trie(rows), beam=3, k=3).kind == "beam"
    assert Engine(model, Trie(rows), beam=3, k=3, precision="bf16").kind == "beam"


@pytest.mark.parametrize("kind", KINDS)
def test_scores_that_are_no_numbers_are_an_error(rows: np.ndarray, tokens: torch.Tensor, kind: Kind) -> None:
    model = small_model(2)
    torch.nn.init.constant_(model.decoder_norm.weight, torch.nan)
    with pytest.raises(FloatingPointError, match="not numbers"):
        Engine(model, Trie(rows), beam=3, k=3, kind=kind).search(tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_bad_input_gets_a_sentence(model: T5, rows: np.ndarray, tokens: torch.Tensor, kind: Kind) -> None:
    trie = Trie(rows)
    engine = Engine(model, trie, beam=3, k=3, kind=kind)
    with pytest.raises(CatalexError, match=r"beam: the beam is narrower .* \(found 3; allowed: 4 or more\)"):
        Engine(model, trie, beam=3, k=4, kind=kind)
    with pytest.raises(CatalexError, match="tokens that the model does not have"):
        Engine(model, Trie(rows + np.array([0, 0, 20])), beam=3, k=3, kind=kind)
    with pytest.raises(CatalexError, match=r"histories must be .* \(found \(5, 0\)\)"):
        engine.search(tokens[:, :0])
    with pytest.raises(
        CatalexError, match=r"a token is not in the vocabulary \(found 30; allowed: 0 to 25\)"
    ):
        engine.search(torch.full((1, 2), 30))
    with pytest.raises(CatalexError, match=r"allowed: the item mask has .* \(found 'torch.bool \(3,\)'"):
        engine.search(tokens, allowed=torch.ones(3, dtype=torch.bool))
    with pytest.raises(CatalexError, match=r"no filters are set\. Call set_filters first"):
        engine.search(tokens, filters=torch.zeros(5, dtype=torch.long))
    with pytest.raises(
        CatalexError, match=r"the filters have the wrong type or shape \(found 'bool \(1, 3\)'"
    ):
        engine.set_filters(np.ones((1, 3), bool))
    with pytest.raises(CatalexError, match="history 1: the history is empty"):
        engine.search_all([[1], []])
