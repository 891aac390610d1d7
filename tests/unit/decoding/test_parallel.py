"""Search over independent token distributions, against scoring every item."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from catalex.decoding.parallel import parallel_search
from catalex.decoding.trie import ABSENT, Trie
from catalex.errors import CatalexError


def world(seed: int, items: int = 40) -> tuple[np.ndarray, torch.Tensor]:
    random = np.random.default_rng(seed)
    every = np.stack(np.meshgrid(*[np.arange(1, 6)] * 3), -1).reshape(-1, 3)
    tokens = every[random.permutation(len(every))[:items]].astype(np.int64)
    logits = torch.from_numpy(random.standard_normal((4, 3, 7)).astype(np.float32))
    return tokens, logits.log_softmax(-1)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_a_wide_beam_ranks_the_whole_catalogue_exactly(seed: int, k: int) -> None:
    tokens, logs = world(seed)
    found = parallel_search(logs, Trie(tokens), beam=40, k=k)
    scores = sum(logs[:, level][:, tokens[:, level]] for level in range(3))
    best, order = torch.as_tensor(scores).sort(dim=1, descending=True, stable=True)
    torch.testing.assert_close(found.scores, best[:, :k])
    assert torch.equal(found.items, order[:, :k])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 39))
def test_excluded_items_leave_the_exact_ranking_of_the_others(seed: int, count: int) -> None:
    tokens, logs = world(seed)
    random = np.random.default_rng(seed)
    gone = np.stack([random.permutation(40)[: count + 1] for _ in logs])
    gone[:, -1] = ABSENT
    found = parallel_search(logs, Trie(tokens), beam=40, k=40, excluded=torch.from_numpy(gone))
    scores = torch.as_tensor(sum(logs[:, level][:, tokens[:, level]] for level in range(3)))
    for row, out in enumerate(gone):
        left = [i for i in scores[row].sort(descending=True, stable=True)[1].tolist() if i not in out]
        assert found.items[row].tolist() == [*left, *[ABSENT] * (40 - len(left))]


@pytest.mark.parametrize("beam", [5, 8])
def test_a_narrow_beam_gives_distinct_items_of_the_catalogue(beam: int) -> None:
    tokens, logs = world(3)
    found = parallel_search(logs, Trie(tokens), beam=beam, k=5)
    for row, scores, own in zip(found.items.tolist(), found.scores.tolist(), logs, strict=True):
        assert len(set(row)) == 5
        assert all(0 <= item < 40 for item in row)
        assert scores == sorted(scores, reverse=True)
        sums = [sum(float(own[level, token]) for level, token in enumerate(tokens[item])) for item in row]
        assert scores == pytest.approx(sums, rel=1e-5)


def test_a_temperature_changes_no_ranking() -> None:
    tokens, logs = world(1)
    sharp = (logs / 0.1).log_softmax(-1)
    one, other = (parallel_search(x, Trie(tokens), beam=40, k=10).items for x in (logs, sharp))
    assert torch.equal(one, other)


def test_rankings_end_early_and_sizes_are_checked() -> None:
    tokens, logs = world(0, items=3)
    found = parallel_search(logs, Trie(tokens), beam=10, k=5)
    assert (found.items[:, 3:] == ABSENT).all()
    assert torch.isneginf(found.scores[:, 3:]).all()
    with pytest.raises(CatalexError, match="beam is narrower"):
        parallel_search(logs, Trie(tokens), beam=2, k=5)
    assert parallel_search(logs[:0], Trie(tokens), beam=5, k=5).items.shape == (0, 5)
