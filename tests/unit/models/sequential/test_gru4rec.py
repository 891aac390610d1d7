"""GRU4Rec's network: the recurrence written out, causality, padding."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from catalex.models.sequential.gru4rec import GRU4RecModel

ITEMS, LENGTH = 30, 7


def model(layers: int = 1) -> GRU4RecModel:
    torch.manual_seed(0)
    return GRU4RecModel(ITEMS, LENGTH, hidden=8, inner=12, layers=layers, dropout=0.3).eval()


def histories(rows: int = 3, length: int = LENGTH) -> torch.Tensor:
    return torch.randint(0, ITEMS, (rows, length), generator=torch.Generator().manual_seed(1))


def test_the_recurrence_equals_the_gates_written_out():
    network, rows = model(), histories()
    recurrent_in, recurrent_out = network.gru.weight_ih_l0, network.gru.weight_hh_l0
    state, found = torch.zeros(3, 12), []
    for step in range(LENGTH):
        x = network.table(rows[:, step])
        reset_in, update_in, new_in = (x @ recurrent_in.T).chunk(3, -1)
        reset_out, update_out, new_out = (state @ recurrent_out.T).chunk(3, -1)
        reset, update = torch.sigmoid(reset_in + reset_out), torch.sigmoid(update_in + update_out)
        state = (1 - update) * torch.tanh(new_in + reset * new_out) + update * state
        found.append(network.output(state))
    torch.testing.assert_close(network(rows), torch.stack(found, 1))


def test_no_biases_in_the_recurrence_and_every_weight_starts_with_a_signal():
    assert {name for name, _ in model().gru.named_parameters()} == {"weight_ih_l0", "weight_hh_l0"}
    assert model().gru.weight_ih_l0.std() > 0.1


def test_future_items_and_padding_change_nothing():
    network, before = model(2), histories()
    after = before.clone()
    after[:, 5] = (after[:, 5] + 1) % ITEMS
    torch.testing.assert_close(network(before)[:, :5], network(after)[:, :5])
    short = histories(length=4)
    padded = F.pad(short, (0, 3), value=ITEMS)
    torch.testing.assert_close(network.last(padded, torch.full((3,), 4)), network(short)[:, -1])
