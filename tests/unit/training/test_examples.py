"""Training examples against an oracle that writes them one by one, and the batches of an epoch."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalex.data.histories import Histories
from catalex.models.t5 import IGNORE, PAD
from catalex.training.examples import PrefixExamples, TokenTable
from catalex.types import Ints
from support.worlds import ring

EOS = 99
LEVELS = 2


def tokens(items: int, base: int = 1) -> Ints:
    """Different tokens for every item and level."""
    return base + np.arange(items * LEVELS).reshape(items, LEVELS)


def build(histories: list[Histories], items: list[int], **changes: Any) -> PrefixExamples:
    catalogues = [tokens(count, base=1 + 1000 * number) for number, count in enumerate(items)]
    options: dict[str, Any] = {"max_history": 20, "batch_size": 4, "seed": 0, **changes}
    return PrefixExamples.build(TokenTable(catalogues, EOS, "cpu"), histories, **options)


Example = tuple[tuple[int, ...], tuple[int, ...]]


def oracle(histories: list[Histories], items: list[int], max_history: int) -> Counter[Example]:
    """Every (history tokens and end, target tokens and end), by Python loops."""
    found: Counter[Example] = Counter()
    for number, domain in enumerate(histories):
        table = tokens(items[number], base=1 + 1000 * number)
        for user in range(len(domain)):
            sequence = domain[user].tolist()
            for place in range(1, len(sequence)):
                history = sequence[max(0, place - max_history) : place]
                text = [int(t) for item in history for t in table[item]]
                target = [int(t) for t in table[sequence[place]]]
                found[(*text, EOS), (*target, EOS)] += 1
    return found


def written(examples: PrefixExamples, epoch: int = 0) -> Counter[Example]:
    """What the batches of an epoch say, without padding and without rows that fill a batch."""
    found: Counter[Example] = Counter()
    plan = examples.plan(epoch)
    for index in range(len(plan)):
        batch = plan[index]
        for text, labels in zip(batch["tokens"].tolist(), batch["labels"].tolist(), strict=True):
            if labels[0] == IGNORE:
                assert set(labels) == {IGNORE}
                continue
            end = text.index(EOS)
            assert set(text[end + 1 :]) <= {PAD}
            assert PAD not in text[: end + 1]
            found[tuple(text[: end + 1]), tuple(labels)] += 1
    return found


sequences = st.lists(st.lists(st.integers(0, 5), max_size=9), min_size=1, max_size=7)


@settings(max_examples=60, deadline=None)
@given(
    first=sequences,
    second=sequences,
    max_history=st.integers(1, 6),
    batch_size=st.integers(1, 9),
    epoch=st.integers(0, 3),
)
def test_an_epoch_has_each_example_of_the_oracle_exactly_once(
    first: list[list[int]], second: list[list[int]], max_history: int, batch_size: int, epoch: int
) -> None:
    histories = [Histories.from_lists(first), Histories.from_lists(second)]
    examples = build(histories, [6, 6], max_history=max_history, batch_size=batch_size)
    expected = oracle(histories, [6, 6], max_history)
    assert len(examples) == expected.total()
    assert written(examples, epoch) == expected


def test_leave_one_out_gives_three_examples_fewer_than_interactions() -> None:
    """A user of n interactions: two are held out and the first one has no history, so n - 3 remain."""
    split = ring(users=25)
    examples = build([split.training], [20])
    assert len(examples) == sum(max(0, int(n) - 3) for n in split.all.lengths)


def test_no_example_holds_what_is_held_out() -> None:
    split = ring(users=25, items=20)
    held_out = {(user, int(item)) for user in range(25) for item in split.all[user][-2:]}
    marked = [[user * 20 + int(item) for item in split.training[user]] for user in range(25)]
    examples = build([Histories.from_lists(marked)], [500])  # items that tell whose they are
    secret = {tuple(tokens(500)[user * 20 + item]) for user, item in held_out}
    for text, labels in written(examples):
        pairs = {text[i : i + LEVELS] for i in range(0, len(text) - 1, LEVELS)} | {labels[:LEVELS]}
        assert not pairs & secret


def test_batches_have_few_shapes_and_short_histories_get_narrow_ones() -> None:
    random = np.random.default_rng(0)
    histories = Histories.from_lists([random.integers(0, 6, 26).tolist() for _ in range(40)])
    examples = build([histories], [6], max_history=20, batch_size=16)
    plan = examples.plan(0)
    shapes = Counter(tuple(plan[i]["tokens"].shape) for i in range(len(plan)))
    widths = {examples.table.width(slots) for slots in (5, 10, 20)}
    assert widths == {16, 24, 48}  # two tokens an item and the end, up to a multiple of 8
    assert {width for _, width in shapes} == widths
    assert {rows for rows, _ in shapes} == {16}
    for index in range(len(plan)):
        slots, members = plan.batches[index]
        lengths = (examples.targets - examples.starts)[members]
        assert lengths.max() <= slots


def test_rows_that_fill_the_last_batch_are_ignored() -> None:
    examples = build([Histories.from_lists([[0, 1, 2], [3, 4]])], [6], batch_size=8)
    plan = examples.plan(0)
    assert len(plan) == 1
    labels = plan[0]["labels"]
    assert labels.shape == (8, LEVELS + 1)
    assert (labels[:3] != IGNORE).all()
    assert (labels[3:] == IGNORE).all()


@pytest.mark.parametrize(
    ("temperature", "shares"), [(1.0, (0.9, 0.1)), (2.0, (0.75, 0.25)), (1e9, (0.5, 0.5))]
)
def test_the_temperature_mixes_domains(temperature: float, shares: tuple[float, float]) -> None:
    """900 and 100 examples: sqrt gives 30 : 10, infinity 1 : 1. The number of examples stays."""
    large = Histories.from_lists([[0, 1, 2, 3]] * 300)
    small = Histories.from_lists([[0, 1]] * 100)
    examples = build([large, small], [6, 6], temperature=temperature, batch_size=10)
    plan = examples.plan(0)
    members = np.concatenate([part for _, part in plan.batches])
    counts = np.bincount(examples.domains[members], minlength=2)
    assert counts.sum() == pytest.approx(1000, abs=2)
    assert counts / counts.sum() == pytest.approx(np.array(shares), abs=0.002)
    of_small = Counter(members[examples.domains[members] == 1].tolist())
    assert len(of_small) == 100
    assert max(of_small.values()) - min(of_small.values()) <= 1  # repeated evenly


def test_the_plan_is_a_function_of_seed_and_epoch() -> None:
    histories = [Histories.from_lists([[0, 1, 2, 3, 4]] * 20), Histories.from_lists([[5, 4, 3]] * 9)]

    def order(seed: int, epoch: int, temperature: float, before: tuple[int, ...] = ()) -> list[Any]:
        examples = build(histories, [6, 6], seed=seed, temperature=temperature)
        for other in before:
            examples.plan(other)
        return [(slots, part.tolist()) for slots, part in examples.plan(epoch).batches]

    for temperature in (1.0, 3.0):
        assert order(0, 2, temperature) == order(0, 2, temperature, before=(0, 1, 7))
        assert order(0, 2, temperature) != order(0, 3, temperature)
        assert order(0, 2, temperature) != order(1, 2, temperature)


def test_the_table_writes_rows_with_the_end_right_after_the_history() -> None:
    import torch

    table = TokenTable([tokens(4)], EOS, "cpu")
    items = torch.tensor([[0, 3], [2, table.pad], [table.pad, table.pad]])
    found = table.write(items, torch.tensor([2, 1, 0]))
    assert found.shape == (3, 8)
    assert found.tolist() == [
        [1, 2, 7, 8, EOS, PAD, PAD, PAD],
        [5, 6, EOS, PAD, PAD, PAD, PAD, PAD],
        [EOS, PAD, PAD, PAD, PAD, PAD, PAD, PAD],
    ]
