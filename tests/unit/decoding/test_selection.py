"""The choice of children against sorting all of them, with scores that tie again and again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from catalex.decoding import selection
from catalex.decoding.selection import Beams, select
from catalex.decoding.trie import DeviceTrie, Trie

VOCABULARY = 14


@st.composite
def choices(draw: st.DrawFn) -> tuple[DeviceTrie, int, Beams, torch.Tensor, int]:
    """A level of a small trie, beams on some nodes above it, and log-probabilities of few values."""
    rows = draw(
        st.lists(st.tuples(st.integers(1, 6), st.integers(7, 13)), unique=True, min_size=1, max_size=30)
    )
    index = Trie(np.array(rows)).to("cpu")
    depth = draw(st.integers(0, 1))
    above = 1 if depth == 0 else len(index.levels[0].tokens)
    nodes = draw(st.permutations(range(above)))[: draw(st.integers(1, above))]
    seed = draw(st.integers(0, 1000))
    values = torch.tensor(draw(st.sampled_from([[-1.0], [-1.0, -2.0], [-0.5, -1.0, -1.5, -3.0]])))
    random = torch.Generator().manual_seed(seed)

    def any_of(*shape: int) -> torch.Tensor:
        return values[torch.randint(len(values), shape, generator=random)]

    users = 2
    beams = Beams(
        torch.zeros(users, len(nodes), dtype=torch.long),
        torch.tensor([nodes] * users),
        any_of(users, len(nodes)),
        torch.rand(users, len(nodes), generator=random) < 0.8,
    )
    width = min(draw(st.integers(1, 12)), len(nodes) * index.levels[depth].fan_out)
    return index, depth, beams, any_of(users, len(nodes), VOCABULARY), width


def by_sorting(index: DeviceTrie, depth: int, beams: Beams, log: torch.Tensor, width: int, user: int) -> list:
    level, found = index.levels[depth], []
    for w, node in enumerate(beams.node[user].tolist()):
        if beams.alive[user, w]:
            for child in range(int(level.starts[node]), int(level.starts[node + 1])):
                score = beams.score[user, w] + log[user, w, int(level.tokens[child])]
                name = int(index.items[child]) if depth == len(index.levels) - 1 else child
                found.append((-float(score), name, w))
    return sorted(found)[:width]


@pytest.mark.parametrize("by_number", [False, True])
@given(choice=choices())
def test_equals_sorting_everything(by_number: bool, choice: tuple) -> None:
    index, depth, beams, log, width = choice
    with pytest.MonkeyPatch.context() as patch:
        if by_number:  # what other devices than a CPU do always
            patch.setattr(selection, "_is_tied", lambda *_: True)
        found = select(index, depth, beams, log.clone(), width)
    for user in range(2):
        expected = by_sorting(index, depth, beams, log, width, user)
        rows = zip(
            found.score[user].tolist(), found.node[user].tolist(), found.parent[user].tolist(), strict=True
        )
        alive = found.alive[user].tolist()
        assert alive == [True] * len(expected) + [False] * (width - len(expected))
        assert [(-s, n, p) for s, n, p in rows][: len(expected)] == expected
        assert (found.score[user][~found.alive[user]] == -torch.inf).all()
