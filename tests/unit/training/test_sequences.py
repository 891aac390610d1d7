"""Training examples of sequence models: nothing lost, nothing doubled, no target in its own history."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalex.data.histories import Histories
from catalex.training.sequences import (
    MaskPlan,
    Negatives,
    Prefixes,
    PrefixPlan,
    WindowPlan,
    item_windows,
    training_windows,
)

ITEMS = 40
SEQUENCES = [[user + step for step in range(1 + user % 7)] for user in range(24)]
TRAINING = Histories.from_lists(SEQUENCES)
sequences = st.lists(st.lists(st.integers(0, 5), max_size=13), min_size=1, max_size=6)


def everything(plan, key):
    return np.concatenate([plan[index][key].numpy() for index in range(len(plan))])


@given(sequences, st.integers(1, 5))
def test_every_prefix_is_an_example_once(found, length):
    training = Histories.from_lists(found)
    expected = [
        (tuple(row[max(0, end - length) : end]), row[end]) for row in found for end in range(1, len(row))
    ]
    prefixes = Prefixes.build(training, length, 6, "cpu")
    assert len(prefixes) == len(expected)
    if not expected:
        return
    plan = PrefixPlan(prefixes, len(expected), 0, 0)
    batch = plan[0]
    examples = [
        (tuple(history[:size]), target)
        for history, size, target in zip(
            batch["histories"].tolist(), batch["lengths"].tolist(), batch["targets"].tolist(), strict=True
        )
    ]
    assert sorted(examples) == sorted(expected)
    padding = batch["histories"].numpy()[np.arange(length) >= batch["lengths"].numpy()[:, None]]
    assert (padding == 6).all()


def test_batches_of_an_epoch_are_full_and_a_function_of_seed_and_epoch():
    prefixes = Prefixes.build(TRAINING, 4, ITEMS, "cpu")
    plan = PrefixPlan(prefixes, 16, 0, 0)
    assert {len(plan[i]["targets"]) for i in range(len(plan))} == {16}
    assert np.array_equal(everything(plan, "targets"), everything(PrefixPlan(prefixes, 16, 0, 0), "targets"))
    for other in (PrefixPlan(prefixes, 16, 0, 1), PrefixPlan(prefixes, 16, 1, 0)):
        assert not np.array_equal(everything(plan, "targets"), everything(other, "targets"))
    with pytest.raises(IndexError):
        plan[len(plan)]


@given(sequences, st.integers(2, 5))
def test_item_windows_hold_every_item_but_the_lonely(found, length):
    windows = item_windows(Histories.from_lists(found), length, 6)
    kept = sorted(item for window in windows.tolist() for item in window if item < 6)
    expected = []
    for row in found:
        cuts = list(range(len(row), 0, -length))
        chunks = [row[max(0, end - length) : end] for end in cuts]
        expected += [item for chunk in chunks if len(chunk) > 1 for item in chunk]
    assert kept == sorted(expected)


def test_masks_hide_what_they_ask_for():
    windows = item_windows(TRAINING, 5, ITEMS)
    plan = MaskPlan(windows, ITEMS, 8, 0, 0, "cpu", ratio=0.3, last=0.0)
    plan.list_positions = False
    for index in range(len(plan)):
        batch = plan[index]
        histories, targets = batch["histories"].numpy(), batch["targets"].numpy()
        masked = targets >= 0
        assert masked.any(axis=1).all()
        assert (histories[masked] == ITEMS + 1).all()
        assert (histories[~masked] <= ITEMS).all()
        restored = np.where(masked, targets, histories)
        known = {tuple(row) for row in windows.tolist()}
        assert {tuple(row) for row in restored.tolist()} <= known


def test_the_share_of_masked_items_and_of_masked_ends():
    windows = np.tile(np.arange(20), (2000, 1))
    for last, expected in ((0.0, 0.25), (1.0, 1 / 20), (0.5, (0.25 + 1 / 20) / 2)):
        plan = MaskPlan(windows, ITEMS, 2000, 0, 0, "cpu", ratio=0.25, last=last)
        plan.list_positions = False
        masked = plan[0]["targets"].numpy() >= 0
        assert masked.mean() == pytest.approx(expected, abs=0.01)
        if last == 1.0:
            assert (masked.sum(axis=1) == 1).all()
            assert masked[:, -1].all()
        else:
            assert masked[:, 0].mean() == pytest.approx(masked[:, 5].mean(), abs=0.04)


def test_negatives_are_items_that_the_user_has_not():
    negatives = Negatives(TRAINING, ITEMS)
    users = np.repeat(np.arange(len(TRAINING)), 200)
    drawn = negatives.draw(users, np.random.default_rng(0))
    own = [set(row) for row in SEQUENCES]
    assert not any(item in own[user] for user, item in zip(users.tolist(), drawn.tolist(), strict=True))
    counts = np.bincount(drawn[users == 0], minlength=ITEMS)
    assert counts[0] == 0
    assert (counts[1:] > 0).sum() > 35


def test_a_user_who_has_everything_gets_a_negative_all_the_same():
    all_items = Histories.from_lists([list(range(5))])
    assert Negatives(all_items, 5).draw(np.zeros((2, 3), np.int64), np.random.default_rng(0)).shape == (2, 3)


def test_window_batches_carry_negatives_beside_their_targets():
    windows = training_windows(TRAINING, 4, ITEMS)
    plan = WindowPlan(windows, 8, 0, 0, "cpu", Negatives(TRAINING, ITEMS))
    batch = plan[0]
    assert batch["negatives"].shape == batch["targets"].shape == batch["positions"].shape
    for _ in range(2):
        again = WindowPlan(windows, 8, 0, 0, "cpu", Negatives(TRAINING, ITEMS))
        again[1]  # another batch before it changes nothing
        assert (again[0]["negatives"] == batch["negatives"]).all()
    with_users = PrefixPlan(Prefixes.build(TRAINING, 4, ITEMS, "cpu"), 8, 0, 0, Negatives(TRAINING, ITEMS))
    assert with_users[0]["negatives"].shape == (8,)
