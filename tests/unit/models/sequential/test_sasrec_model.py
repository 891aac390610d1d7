"""SASRec's network: causality, padding, loss at the start, and what one user teaches it."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from catalex.models.sequential.parts import Block
from catalex.models.sequential.sasrec import SASRecModel

ITEMS, LENGTH = 50, 8


@pytest.fixture(params=[("post", False), ("pre", False), ("post", True)], ids=["post", "pre", "latest first"])
def model(request) -> SASRecModel:
    torch.manual_seed(0)
    norm, latest_first = request.param
    sizes = {"hidden": 16, "layers": 2, "heads": 2, "dropout": 0.3}
    return SASRecModel(ITEMS, LENGTH, **sizes, norm=norm, latest_first=latest_first).eval()


def histories(rows: int = 3, length: int = LENGTH) -> torch.Tensor:
    return torch.randint(0, ITEMS, (rows, length), generator=torch.Generator().manual_seed(1))


def loss_of(model: SASRecModel, items: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return model.loss({"histories": items, "targets": targets})


def test_future_items_change_no_earlier_output(model):
    before = histories()
    after = before.clone()
    after[:, 5] = (after[:, 5] + 1) % ITEMS
    one, two = model(before), model(after)
    assert torch.equal(one[:, :5], two[:, :5])
    assert not torch.allclose(one[:, 5:], two[:, 5:])


def test_padding_changes_nothing(model):
    short = histories(length=5)
    padded = F.pad(short, (0, LENGTH - 5), value=ITEMS)
    torch.testing.assert_close(model(padded)[:, :5], model(short))
    lengths = torch.full((3,), 5)
    torch.testing.assert_close(model.last(padded, lengths), model(short)[:, -1])


def test_other_rows_of_a_batch_change_nothing(model):
    rows = histories(6)
    torch.testing.assert_close(model(rows)[2:3], model(rows[2:3]))


def test_scores_have_no_column_for_padding(model):
    assert model.logits(model(histories())).shape == (3, LENGTH, ITEMS)


def test_output_is_tied_to_the_input_table(model):
    states = torch.eye(16)
    assert torch.equal(model.logits(states), model.table.weight[:ITEMS].T)


def test_loss_starts_near_that_of_a_uniform_guess(model):
    targets = (histories() + 1) % ITEMS
    assert loss_of(model, histories(), targets).item() == pytest.approx(math.log(ITEMS), abs=0.15)


def test_listed_positions_give_the_same_loss_and_gradients(model):
    targets = (histories() * 3) % ITEMS
    targets[0, 4:] = targets[2, 1:] = -1
    loss_of(model, histories(), targets).backward()
    expected = model.table.weight.grad.clone()
    model.zero_grad()
    positions = torch.nonzero(targets.flatten() >= 0)[:, 0]
    listed = F.pad(targets.flatten()[positions], (0, 3), value=-1)
    value = model.loss({"histories": histories(), "targets": listed, "positions": F.pad(positions, (0, 3))})
    value.backward()
    torch.testing.assert_close(value, loss_of(model, histories(), targets))
    torch.testing.assert_close(model.table.weight.grad, expected)


def test_it_memorises_one_user(model):
    model.dropout = 0.0
    for block in model.blocks:
        block.dropout = 0.0
    row = histories(1, LENGTH + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        loss = loss_of(model, row[:, :-1], row[:, 1:])
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    assert torch.equal(model.logits(model(row[:, :-1])).argmax(-1), row[:, 1:])


def test_attention_equals_the_plain_formula():
    torch.manual_seed(0)
    block, x = Block(12, 3, 0.5, "post").eval(), torch.randn(2, 5, 12)
    query, key, value = block.project(x).split(12, dim=-1)
    heads = []
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        weights = query[..., part] @ key[..., part].transpose(1, 2) / 2.0
        weights = weights.masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf).softmax(-1)
        heads.append(weights @ value[..., part])
    middle = block.attention_norm(x + block.output(torch.cat(heads, -1)))
    expected = block.feed_norm(middle + block.narrow(F.gelu(block.widen(middle))))
    torch.testing.assert_close(block(x), expected)


def test_dropout_works_in_training_only(model):
    assert torch.equal(model(histories()), model(histories()))
    model.train()
    assert not torch.equal(model(histories()), model(histories()))
