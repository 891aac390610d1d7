"""HSTU's network: a layer as three nested loops, causality, scores as cosines, the sampled loss."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from catalex.models.sequential.hstu import HSTUBlock, HSTUModel

ITEMS, LENGTH = 30, 6


def model(negatives: int | None = None, latest_first: bool = False) -> HSTUModel:
    torch.manual_seed(0)
    sizes = (ITEMS, LENGTH, 16, 2, 2, 4, 0.2, 0.2)
    return HSTUModel(*sizes, temperature=0.1, negatives=negatives, latest_first=latest_first).eval()


def histories(rows: int = 3, length: int = LENGTH) -> torch.Tensor:
    return torch.randint(0, ITEMS, (rows, length), generator=torch.Generator().manual_seed(1))


def test_a_layer_equals_its_equations():
    torch.manual_seed(0)
    block, x = HSTUBlock(LENGTH, 8, heads=2, value=3, query=4, dropout=0.5).eval(), torch.randn(4, 8)
    with torch.no_grad():
        block.project.weight.normal_()
        block.bias.normal_()
    projected = F.silu(F.layer_norm(x, (8,), eps=1e-6) @ block.project.weight.T)
    gate, value, query, key = projected.split([6, 6, 8, 8], dim=-1)
    mixed = torch.zeros(4, 6)
    for head in range(2):
        v, q = slice(3 * head, 3 * head + 3), slice(4 * head, 4 * head + 4)
        for s in range(4):
            for t in range(s + 1):
                weight = F.silu(query[s, q] @ key[t, q] + block.bias[s - t]) / LENGTH
                mixed[s, v] += weight * value[t, v]
    expected = x + block.output(gate * F.layer_norm(mixed, (6,), eps=1e-6))
    torch.testing.assert_close(block(x[None])[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("latest_first", [False, True])
def test_future_items_and_padding_change_nothing(latest_first):
    network, before = model(latest_first=latest_first), histories()
    after = before.clone()
    after[:, 4] = (after[:, 4] + 1) % ITEMS
    torch.testing.assert_close(network(before)[:, :4], network(after)[:, :4])
    assert not torch.allclose(network(before)[:, 4:], network(after)[:, 4:])
    short = histories(length=3)
    padded = F.pad(short, (0, 3), value=ITEMS)
    torch.testing.assert_close(network.last(padded, torch.full((3,), 3)), network(short)[:, -1])


def test_positions_are_counted_from_either_end():
    rows = histories()
    for latest_first, of_the_last in ((False, LENGTH - 1), (True, 0)):
        network = model(latest_first=latest_first)
        before = network(rows)
        with torch.no_grad():
            network.positions.weight[of_the_last] += 1.0
        after = network(rows)
        torch.testing.assert_close(after[:, :-1], before[:, :-1])
        assert not torch.allclose(after[:, -1], before[:, -1])


def test_scores_are_cosines_over_the_temperature():
    network = model()
    states = network(histories())[:, -1]
    scores = network.logits(states, network.candidates())
    assert scores.shape == (3, ITEMS)
    assert scores.abs().max() <= 10 + 1e-5
    expected = F.cosine_similarity(states[:, None], network.table.weight[None, :ITEMS], dim=-1) / 0.1
    torch.testing.assert_close(scores, expected)


def test_the_sampled_loss_counts_the_next_item_and_what_was_drawn(monkeypatch):
    network, rows = model(negatives=4), histories()
    targets = torch.tensor([[3, -1, 7, -1, -1, 9], [-1] * 6, [-1] * 6])
    drawn = torch.randint(0, ITEMS, (18, 4), generator=torch.Generator().manual_seed(2))
    drawn[0, 1] = 3  # the next item itself: must not count against itself
    monkeypatch.setattr(torch, "randint", lambda *_, **__: drawn)
    found = network.loss({"histories": rows, "targets": targets})
    states, table = network(rows).flatten(0, 1), network.candidates()
    terms = []
    for place, target in ((0, 3), (2, 7), (5, 9)):
        others = [i for i in drawn[place].tolist() if i != target]
        logits = [float((states[place] @ table[i]).detach()) / 0.1 for i in [target, *others]]
        terms.append(math.log(sum(math.exp(x) for x in logits)) - logits[0])
    assert float(found.detach()) == pytest.approx(sum(terms) / 3, rel=1e-5)


def test_many_samples_come_near_the_full_softmax():
    network, rows = model(), histories()
    batch = {"histories": rows, "targets": (rows + 1) % ITEMS}
    full = float(network.loss(batch).detach())
    network.negatives = 30_000
    torch.manual_seed(0)
    # each item is drawn about 1000 times, against one next item: its weight is 1000 times too small
    sampled = float(network.loss(batch).detach()) - math.log(30_000 / ITEMS)
    logits = network.logits(network(rows)).flatten(0, 1)
    others = logits.scatter(1, batch["targets"].view(-1, 1), -math.inf).logsumexp(1)
    own = logits.gather(1, batch["targets"].view(-1, 1))[:, 0]
    assert sampled == pytest.approx(float((others - own).mean().detach()), abs=0.05)
    assert sampled < full + 0.05
