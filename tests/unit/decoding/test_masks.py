"""Item masks and excluded items: which nodes they close, and that both ways to say it find the same items."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from catalex.decoding import ABSENT, Trie, beam_search, search_all
from catalex.decoding.masks import closed_nodes, open_nodes
from catalex.decoding.reference import reference_beam_search
from catalex.errors import CatalexError
from catalex.models.t5 import T5, T5Options

VOCABULARY = 17


@pytest.fixture(scope="module")
def model() -> T5:
    torch.manual_seed(2)
    return T5(VOCABULARY, T5Options(layers=1, hidden=16, feed_forward=16, heads=2, head_width=8)).eval()


TOKENS = torch.tensor([[3, 9, 16, 0], [4, 16, 0, 0], [1, 8, 13, 16]])


@st.composite
def catalogues(draw: st.DrawFn) -> tuple[list[tuple[int, ...]], list[list[int]], list[bool] | None]:
    """Identifiers, a line of excluded items for each of three users, and perhaps a mask."""
    levels = draw(st.integers(1, 3))
    row = st.tuples(*[st.integers(1 + 5 * level, 5 + 5 * level) for level in range(levels)])
    rows = draw(st.lists(row, unique=True, min_size=1, max_size=25))
    line = st.lists(st.integers(ABSENT, len(rows) + 2), max_size=12)  # also ids that exclude nothing
    excluded = draw(st.lists(line, min_size=3, max_size=3))
    mask = draw(st.none() | st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    return rows, excluded, mask


@given(catalogues())
def test_nodes_are_closed_where_nothing_is_left(case: tuple) -> None:
    rows, excluded, mask = case
    index = Trie(np.array(rows)).to("cpu")
    allowed = torch.ones(len(rows), dtype=torch.bool) if mask is None else torch.tensor(mask)
    opened = None if mask is None else open_nodes(index, allowed)
    width = max(map(len, excluded))
    padded = torch.tensor([line + [ABSENT] * (width - len(line)) for line in excluded]).view(3, width)
    closed = closed_nodes(index, padded.long(), opened)
    left = allowed.repeat(3, 1)
    for user, line in enumerate(excluded):
        left[user, [item for item in line if 0 <= item < len(rows)]] = False
    before, after = open_nodes(index, allowed), open_nodes(index, left)
    for depth, level in enumerate(index.levels):
        for user in range(3):
            found = {
                int(level.starts[parent]) + place
                for parent, place in zip(
                    closed.parents[depth][user].tolist(), closed.places[depth][user].tolist(), strict=True
                )
                if parent != ABSENT
            }
            assert found == set(
                (before.levels[depth][0] & ~after.levels[depth][user]).nonzero().flatten().tolist()
            )


@settings(max_examples=50, deadline=None)
@given(catalogues(), st.integers(1, 10))
def test_excluding_equals_the_mask_and_the_slow_search(model: T5, case: tuple, beam: int) -> None:
    rows, excluded, mask = case
    trie = Trie(np.array(rows))
    allowed = None if mask is None else torch.tensor(mask)
    found = beam_search(model, TOKENS, trie, beam=beam, k=beam, allowed=allowed, exclude=excluded)
    both = np.ones((3, len(rows)), bool) if mask is None else np.tile(np.array(mask), (3, 1))
    for user, line in enumerate(excluded):
        both[user, [item for item in line if 0 <= item < len(rows)]] = False
    masked = beam_search(model, TOKENS, trie, beam=beam, k=beam, allowed=torch.from_numpy(both))
    assert torch.equal(found.items, masked.items)
    assert torch.equal(found.scores, masked.scores)
    for user, history in enumerate(TOKENS):
        kept = set(np.flatnonzero(both[user]).tolist())
        expected = reference_beam_search(model, history[history != 0].tolist(), rows, beam, beam, kept)
        items = [item for item in found.items[user].tolist() if item != ABSENT]
        assert len(items) == len(expected)
        assert found.scores[user][: len(items)].tolist() == pytest.approx([s for _, s in expected], abs=1e-4)


def test_removed_items_exclude_nothing(model: T5) -> None:
    trie = Trie(np.array([[1, 6], [2, 7], [2, 8]]))
    trie.remove([1])
    found = beam_search(model, TOKENS, trie, beam=3, k=3, exclude=[[1], [1, 2], []])
    assert [sorted(line) for line in found.items.tolist()] == [[-1, 0, 2], [-1, -1, 0], [-1, 0, 2]]


def test_lists_and_padded_integers_are_the_same(model: T5) -> None:
    rows = np.array([[a, b] for a in (1, 2, 3) for b in (6, 7)])
    lines = [np.array([0, 1, 4]), np.array([], np.int64), [5, 5]]
    padded = torch.tensor([[0, 1, 4], [ABSENT] * 3, [5, 5, ABSENT]], dtype=torch.int32)
    one = beam_search(model, TOKENS, Trie(rows), beam=6, k=6, exclude=lines)
    other = beam_search(model, TOKENS, Trie(rows), beam=6, k=6, exclude=padded)
    assert torch.equal(one.items, other.items)
    assert set(one.items[0].tolist()) == {ABSENT, 2, 3, 5}
    batches = search_all(
        model, [h[h != 0].numpy() for h in TOKENS], Trie(rows), beam=6, k=6, exclude=lines, batch_size=2
    )
    assert torch.equal(batches.items, one.items)


def test_a_prepared_mask_serves_many_requests_of_one_state(model: T5) -> None:
    rows = np.array([[a, b] for a in (1, 2, 3) for b in (6, 7)])
    trie = Trie(rows)
    mask = torch.arange(6) % 2 == 0
    prepared = open_nodes(trie.to("cpu"), mask)
    plain = beam_search(model, TOKENS, trie, beam=6, k=6, allowed=mask)
    for tokens, rows_of in ((TOKENS, slice(None)), (TOKENS[1:2], slice(1, 2))):
        found = beam_search(model, tokens, trie, beam=6, k=6, allowed=prepared)
        assert torch.equal(found.items, plain.items[rows_of])
    trie.add(np.array([[4, 6]]))
    with pytest.raises(CatalexError, match=r"allowed: the prepared item mask is of another state"):
        beam_search(model, TOKENS, trie, beam=6, k=6, allowed=prepared)


def test_bad_exclusions_get_a_sentence(model: T5) -> None:
    trie = Trie(np.array([[1, 6]]))
    with pytest.raises(
        CatalexError, match=r"exclude: .* another number of histories \(found 2; allowed: 3\)"
    ):
        beam_search(model, TOKENS, trie, beam=1, k=1, exclude=[[0], [0]])
    for wrong in (torch.zeros(3), torch.zeros(2, 4, dtype=torch.long), torch.zeros(3, 1, dtype=torch.bool)):
        with pytest.raises(CatalexError, match=r"exclude: excluded items have the wrong type or shape"):
            beam_search(model, TOKENS, trie, beam=1, k=1, exclude=wrong)
