"""The fast search against the slow one, against brute force, and against transformers' own beam search."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import T5ForConditionalGeneration

from catalex.decoding import ABSENT, Trie, search_all
from catalex.decoding.reference import Ranked, rank_exhaustively, reference_beam_search
from catalex.models.t5 import T5, T5Options
from catalex.models.t5_folder import save_t5

TOLERANCE = 1e-5


def tiny(seed: int, layers: int, vocabulary: int) -> T5:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return T5(
            vocabulary, T5Options(layers=layers, hidden=16, feed_forward=24, heads=2, head_width=8)
        ).eval()


@st.composite
def cases(draw: st.DrawFn) -> tuple[T5, list[tuple[int, ...]], list[list[int]]]:
    """A tiny model, a catalogue with shared prefixes (levels share tokens or not), and a few histories."""
    levels, codes = draw(st.integers(1, 4)), draw(st.integers(2, 5))
    offset = draw(st.sampled_from([0, codes]))
    row = st.tuples(*[st.integers(1 + level * offset, codes + level * offset) for level in range(levels)])
    catalogue = draw(st.lists(row, unique=True, min_size=1, max_size=25))
    vocabulary = codes + offset * (levels - 1) + 2
    history = st.lists(st.integers(1, vocabulary - 1), min_size=1, max_size=6)
    histories = draw(st.lists(history, min_size=1, max_size=3))
    return tiny(draw(st.integers(0, 10**6)), draw(st.integers(1, 2)), vocabulary), catalogue, histories


def assert_same(items: torch.Tensor, scores: torch.Tensor, expected: Ranked) -> None:
    """The row is `expected` followed by nothing; items may only swap where scores differ by rounding."""
    found = [(i, s) for i, s in zip(items.tolist(), scores.tolist(), strict=True) if i != ABSENT]
    assert [s for _, s in found] == pytest.approx([s for _, s in expected], abs=TOLERANCE)
    assert items.tolist()[len(expected) :] == [ABSENT] * (len(items) - len(expected))
    by_item = dict(expected)
    assert len({i for i, _ in found}) == len(found)
    for (item, score), (wanted, _) in zip(found, expected, strict=True):
        assert item == wanted or by_item.get(item, -np.inf) == pytest.approx(score, abs=TOLERANCE)


@settings(max_examples=40, deadline=None)
@given(cases(), st.integers(1, 12), st.data())
def test_fast_equals_slow(case: tuple, beam: int, data: st.DataObject) -> None:
    model, catalogue, histories = case
    k = data.draw(st.integers(1, beam))
    allowed = data.draw(st.none() | st.sets(st.integers(0, len(catalogue) - 1)))
    mask = None if allowed is None else np.isin(np.arange(len(catalogue)), list(allowed))
    found = search_all(model, histories, Trie(np.array(catalogue)), beam=beam, k=k, allowed=mask)
    for i, history in enumerate(histories):
        assert_same(
            found.items[i],
            found.scores[i],
            reference_beam_search(model, history, catalogue, beam, k, allowed),
        )


@settings(max_examples=30, deadline=None)
@given(cases(), st.data())
def test_a_beam_as_wide_as_the_catalogue_equals_brute_force(case: tuple, data: st.DataObject) -> None:
    model, catalogue, histories = case
    allowed = data.draw(st.none() | st.sets(st.integers(0, len(catalogue) - 1)))
    mask = None if allowed is None else np.isin(np.arange(len(catalogue)), list(allowed))
    k = len(catalogue) + 2
    found = search_all(model, histories, Trie(np.array(catalogue)), beam=k, k=k, allowed=mask)
    for i, history in enumerate(histories):
        assert_same(found.items[i], found.scores[i], rank_exhaustively(model, history, catalogue, k, allowed))


@settings(max_examples=30, deadline=None)
@given(cases(), st.integers(1, 12))
def test_ties_fall_the_same_way(case: tuple, beam: int) -> None:
    """With all scores equal, only the rule for ties decides; it must be one rule."""
    model, catalogue, histories = case
    torch.nn.init.zeros_(model.embedding.weight)
    found = search_all(model, histories, Trie(np.array(catalogue)), beam=beam, k=beam)
    expected = reference_beam_search(model, histories[0], catalogue, beam, beam)
    for line in found.items.tolist():
        assert [item for item in line if item != ABSENT] == [item for item, _ in expected]


def test_the_slow_search_with_a_wide_beam_is_brute_force_too() -> None:
    """The two slow answers come from different code: one walks prefixes, one scores whole identifiers."""
    model = tiny(seed=1, layers=2, vocabulary=15)
    catalogue = [(1, 6, 11), (1, 6, 12), (2, 7, 11), (3, 8, 13), (1, 7, 11)]
    walked = reference_beam_search(model, [3, 4, 14], catalogue, 5, 5)
    scored = rank_exhaustively(model, [3, 4, 14], catalogue, 5)
    assert [item for item, _ in walked] == [item for item, _ in scored]
    assert [s for _, s in walked] == pytest.approx([s for _, s in scored], abs=1e-5)


@pytest.mark.parametrize(("seed", "beam"), [(0, 4), (1, 8), (2, 20)])
def test_equals_transformers(tmp_path: Path, seed: int, beam: int) -> None:
    """Transformers restricts by a function of the prefix, after log-softmax as we do; no length penalty."""
    generator = np.random.default_rng(seed)
    rows = generator.permutation(np.unique(generator.integers(0, 6, (70, 3)) + np.array([1, 7, 13]), axis=0))
    model = tiny(seed, layers=2, vocabulary=20)
    histories = [generator.integers(1, 19, length) for length in (7, 3, 5)]
    save_t5(model, tmp_path)
    theirs = T5ForConditionalGeneration.from_pretrained(tmp_path).eval()

    children: dict[tuple[int, ...], set[int]] = {}
    for row in rows.tolist():
        for depth, token in enumerate(row):
            children.setdefault(tuple(row[:depth]), set()).add(token)
    padded = np.zeros((3, 7), np.int64)
    for line, history in zip(padded, histories, strict=True):
        line[: len(history)] = history
    output = theirs.generate(
        torch.from_numpy(padded),
        attention_mask=torch.from_numpy(padded != 0).long(),
        num_beams=beam,
        num_return_sequences=beam,
        max_new_tokens=3,
        length_penalty=0.0,
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
        prefix_allowed_tokens_fn=lambda _, prefix: sorted(children[tuple(prefix.tolist()[1:])]),
    )
    item_of = {tuple(row): item for item, row in enumerate(rows.tolist())}
    items = [item_of[tuple(sequence[1:])] for sequence in output.sequences.tolist()]
    found = search_all(model, histories, Trie(rows), beam=beam, k=beam)
    assert found.items.flatten().tolist() == items
    torch.testing.assert_close(found.scores.flatten(), output.sequences_scores, rtol=0, atol=TOLERANCE)
