"""Packed batches against the examples written one by one, in both layouts, alone and shared out."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from catalex.data.histories import Histories
from catalex.models.t5 import IGNORE, PAD, T5, T5Options
from catalex.models.t5_packed import packed_loss
from catalex.training import packed_examples
from catalex.training.examples import PrefixExamples, TokenTable
from catalex.training.loop import Batch, TrainingOptions, train
from catalex.training.packed_examples import Layout, PackedExamples

EOS, LEVELS = 25, 2
TOKENS = 1 + np.arange(12 * LEVELS).reshape(12, LEVELS)

Written = tuple[tuple[int, ...], tuple[int, ...]]


def packed(sequences: list[list[int]], layout: Layout, **changes: Any) -> PackedExamples:
    options: dict[str, Any] = {"max_history": 4, "batch_size": 4, "seed": 0, **changes}
    table = TokenTable([TOKENS], EOS, "cpu")
    return PackedExamples(PrefixExamples.build(table, [Histories.from_lists(sequences)], **options), layout)


def oracle(sequences: list[list[int]], max_history: int = 4) -> Counter[Written]:
    found: Counter[Written] = Counter()
    for sequence in sequences:
        for place in range(1, len(sequence)):
            history = sequence[max(0, place - max_history) : place]
            text = [int(t) for item in history for t in TOKENS[item]]
            found[(*text, EOS), (*TOKENS[sequence[place]].tolist(), EOS)] += 1
    return found


def written(batch: Any) -> Counter[Written]:
    """What a packed batch says, read through its layout."""
    found: Counter[Written] = Counter()
    tokens, labels = batch["tokens"].tolist(), batch["labels"].tolist()
    if "widths" in batch:
        lengths = [int(t) for n, t in batch["widths"].tolist() for _ in range(n)]
        starts = np.cumsum([0, *lengths])[:-1].tolist()
        assert sum(lengths) == len(tokens)
    else:
        starts, lengths = batch["starts"].tolist(), batch["lengths"].tolist()
        segments = batch["segments"].flatten().tolist()
        assert [t == PAD for t in tokens] == [s == -1 for s in segments]
        for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            assert set(segments[start : start + length]) <= {row}
    for start, length, target in zip(starts, lengths, labels, strict=True):
        if length:
            found[tuple(tokens[start : start + length]), tuple(target)] += 1
        else:
            assert set(target) == {IGNORE}
    return found


sequences_of_items = st.lists(st.lists(st.integers(0, 11), max_size=9), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(
    sequences=sequences_of_items,
    layout=st.sampled_from(["groups", "rows"]),
    batch_size=st.integers(1, 9),
    epoch=st.integers(0, 2),
)
def test_an_epoch_has_each_example_of_the_oracle_exactly_once(
    sequences: list[list[int]], layout: Layout, batch_size: int, epoch: int
) -> None:
    made = packed(sequences, layout, batch_size=batch_size)
    plan = made.plan(epoch)
    found: Counter[Written] = Counter()
    for index in range(len(plan)):
        found += written(plan[index])
    expected = oracle(sequences)
    assert found == expected
    assert len(plan) == -(-expected.total() // batch_size)


def test_working_ahead_changes_nothing() -> None:
    random = np.random.default_rng(0)
    sequences = [random.integers(0, 12, 7).tolist() for _ in range(9)]
    one, other = packed(sequences, "rows"), packed(sequences, "rows")
    for epoch in (0, 1, 2):
        plan = one.plan(epoch)
        forward = [plan[i] for i in range(len(plan))]
        again = other.plan(epoch)
        backward = [again[i] for i in reversed(range(len(again)))][::-1]
        for left, right in zip(forward, backward, strict=True):
            assert all(torch.equal(left[key], right[key]) for key in left)
    late = packed(sequences, "rows").plan(2)  # never asked for epochs 0 and 1
    assert all(torch.equal(late[0][key], one.plan(2)[0][key]) for key in late[0])
    assert not torch.equal(one.plan(0)[0]["tokens"], one.plan(1)[0]["tokens"])


def test_rows_of_labels_are_as_many_in_every_batch() -> None:
    plan = packed([[0, 1, 2, 3, 4, 5, 6, 7], [1, 2, 3]], "rows").plan(0)
    assert [len(part) for part in plan.batches] == [3, 3, 3]
    plan = packed([[0, 1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5]], "rows").plan(0)
    assert [len(part) for part in plan.batches] == [4, 4, 3]
    assert {len(plan[i]["labels"]) for i in range(3)} == {4}


@pytest.mark.parametrize("layout", ["groups", "rows"])
def test_the_shares_of_several_processes_add_up(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    sequences = [[0, 1, 2, 3, 4, 5], [3, 2, 9, 11], [7, 1]]
    alone = packed(sequences, layout, batch_size=5).plan(1)
    assert alone.shared
    torch.manual_seed(0)
    model = T5(EOS + 1, T5Options(layers=1, hidden=16, feed_forward=32, heads=2, head_width=8)).eval()
    whole = [written(alone[i]) for i in range(len(alone))]
    losses = [packed_loss(model, alone[i], "sum").item() for i in range(len(alone))]
    parts: list[Counter[Written]] = [Counter() for _ in whole]
    sums = [0.0 for _ in whole]
    for process in range(3):
        monkeypatch.setattr(packed_examples, "process_count", lambda: 3)
        monkeypatch.setattr(packed_examples, "process_index", lambda process=process: process)
        monkeypatch.setattr(packed_examples, "share", lambda rows, process=process: rows[process::3])
        plan = packed(sequences, layout, batch_size=5).plan(1)
        for index in range(len(plan)):
            batch = plan[index]
            parts[index] += written(batch)
            sums[index] += packed_loss(model, batch, "sum").item()
    assert parts == whole
    assert sums == pytest.approx(losses, rel=1e-5)


def test_two_domains_mix_as_in_the_plain_batches() -> None:
    table = TokenTable([TOKENS, TOKENS], EOS, "cpu")
    histories = [Histories.from_lists([[0, 1, 2, 3]] * 30), Histories.from_lists([[0, 1]] * 10)]
    examples = PrefixExamples.build(table, histories, max_history=4, batch_size=10, seed=0, temperature=2.0)
    members = np.concatenate(PackedExamples(examples, "rows").plan(0).batches)
    counts = np.bincount(examples.domains[members])
    assert counts / counts.sum() == pytest.approx([0.75, 0.25], abs=0.02)


UNLEARNED = math.log(EOS + 1)
"""Loss of a network that knows nothing: all tokens are equally likely."""


def learned(
    device: str, *, fused: bool, layout: Layout | None = None, seed: int = 0, wrong: bool = False
) -> tuple[float, torch.Tensor]:
    """Mean loss of the last of six epochs on a ring of items, and the weights after it.

    `wrong` gives every example the labels of its neighbour in the batch.
    """
    random = np.random.default_rng(0)
    sequences = [[int(s + i) % 12 for i in range(6)] for s in random.integers(0, 12, 200)]
    options = TrainingOptions(epochs=6, batch_size=64, learning_rate=3e-3, clip_norm=1.0)
    torch.manual_seed(seed)
    sizes = T5Options(layers=2, hidden=64, feed_forward=128, heads=2, head_width=32, dropout=0.1)
    model = T5(EOS + 1, sizes)
    examples = PrefixExamples.build(
        TokenTable([TOKENS], EOS, device),
        [Histories.from_lists(sequences)],
        max_history=4,
        batch_size=64,
        seed=seed,
    )

    def loss(network: torch.nn.Module, batch: Batch) -> torch.Tensor:
        assert isinstance(network, T5)
        if not fused:
            return network.loss(batch["tokens"], batch["labels"])
        labels = batch["labels"].roll(1, 0) if wrong else batch["labels"]
        return packed_loss(network, {**batch, "labels": labels})

    report = train(
        model, plan=PackedExamples(examples, layout).plan if fused else examples.plan, loss=loss,
        validate=lambda m: 0.0, options=options, seed=seed, device=device, partial=None, name="test",
    )  # fmt: skip
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    return report.curves["loss"][-1], weights


def mean_loss(device: str, **way: Any) -> float:
    """Mean of `learned` over seeds: batches and dropout differ between the ways, so the last losses of one
    seed are two draws, up to a quarter apart."""
    return float(np.mean([learned(device, seed=seed, **way)[0] for seed in range(6)]))


def assert_learned_alike(one: float, other: float) -> None:
    """Both learned nearly all that there is, and what is left is alike."""
    assert max(one, other) < 0.05 * UNLEARNED
    assert one == pytest.approx(other, rel=0.15)


@pytest.mark.gpu
def test_captured_steps_repeat_to_the_bit_and_learn_as_plain_ones() -> None:
    """Two runs of one seed on CUDA, where steps are replayed graphs of kernels, and the plain modules."""
    last, weights = learned("cuda", fused=True)
    again, same = learned("cuda", fused=True)
    assert last == again
    assert torch.equal(weights, same)
    assert_learned_alike(mean_loss("cuda", fused=True), mean_loss("cuda", fused=False))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["groups", "rows"])
def test_packed_steps_learn_as_plain_ones(layout: Layout) -> None:
    plain = mean_loss("cpu", fused=False)
    assert_learned_alike(mean_loss("cpu", fused=True, layout=layout), plain)
    with pytest.raises(AssertionError):
        assert_learned_alike(learned("cpu", fused=True, layout=layout, wrong=True)[0], plain)
