"""Stratified batches: equal n, fair counts, a function of seed and epoch alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from catalex.tokenizers.stratified import StratifiedBatches


def rows(batches: StratifiedBatches, epoch: int) -> Tensor:
    """``(steps, P, n)``."""
    return torch.stack(list(batches.epoch(epoch)))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=5),
    st.integers(1, 64),
    st.integers(0, 99),
    st.integers(-3, 9),
)
def test_every_batch_has_n_items_of_every_domain_and_no_item_is_favoured(
    sizes: list[int], batch: int, seed: int, epoch: int
) -> None:
    batches = StratifiedBatches(sizes, batch, seed)
    found = rows(batches, epoch)
    assert found.shape == (batches.steps, len(sizes), max(batch // len(sizes), 2))
    assert found.shape[0] * found.shape[1] * found.shape[2] >= sum(sizes)  # an epoch is long enough
    first = 0
    for domain, size in enumerate(sizes):
        own = found[:, domain].flatten()
        assert int(own.min()) >= first
        assert int(own.max()) < first + size
        counts = torch.bincount(own - first, minlength=size)
        assert int(counts.max() - counts.min()) <= 1
        first += size


def test_an_epoch_is_as_long_as_its_items_and_domains_of_one_size_are_seen_once() -> None:
    found = rows(StratifiedBatches((64, 64, 64), 24, 0), 0)
    assert found.shape == (8, 3, 8)
    assert found.flatten().sort().values.tolist() == list(range(192))


def test_over_epochs_large_domains_are_seen_whole_and_evenly() -> None:
    """In one epoch a large domain gives only its share; over many the counts even out."""
    batches = StratifiedBatches((300, 10), 20, 0)
    counts = sum(torch.bincount(rows(batches, epoch).flatten(), minlength=310) for epoch in range(200))
    assert isinstance(counts, Tensor)
    large, small = counts[:300].double(), counts[300:].double()
    assert batches.steps * batches.each < 300
    # 200 draws without replacement of about half of the items: mean 103, deviation 7
    assert 0.6 * large.mean() < large.min()
    assert large.max() < 1.4 * large.mean()
    assert int(small.max() - small.min()) <= 200


def test_seed_and_epoch_decide_alone() -> None:
    batches = StratifiedBatches((40, 30), 16, 5)
    third = rows(batches, 3)
    rows(batches, 0)
    torch.manual_seed(0)
    torch.testing.assert_close(rows(batches, 3), third)
    torch.testing.assert_close(rows(StratifiedBatches((40, 30), 16, 5), 3), third)
    for other in (rows(batches, 4), rows(batches, -3), rows(StratifiedBatches((40, 30), 16, 6), 3)):
        assert not torch.equal(other, third)
    state = torch.get_rng_state()
    rows(batches, 1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("tiny", [1, 2, 3])
def test_a_tiny_domain_is_repeated_as_often_as_others_need(tiny: int) -> None:
    batches = StratifiedBatches((100, tiny), 20, 0)
    found = rows(batches, 0)[:, 1].flatten()
    assert len(found) == batches.steps * batches.each
    assert set(found.tolist()) == set(range(100, 100 + tiny))


def test_more_domains_than_a_batch_has_room_for_still_give_two_items_each() -> None:
    found = rows(StratifiedBatches([5] * 8, 4, 0), 0)
    assert found.shape[1:] == (8, 2)
