"""Parameters that learn faster than the rest."""

from __future__ import annotations

import torch
from torch import nn

from catalex.training.optim import adamw, set_learning_rate


def test_fast_parameters_take_their_multiple_of_every_rate() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    optimizer = adamw(model, 0.1, 0.5, "cpu", fast=model[1].parameters(), ratio=10.0)
    fast = {id(p) for p in model[1].parameters()}
    seen = set()
    for peak in (0.1, 0.02):
        set_learning_rate(optimizer, peak)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                seen.add(id(parameter))
                assert group["lr"] == peak * (10 if id(parameter) in fast else 1)
                assert group["weight_decay"] == (0.5 if parameter.ndim >= 2 else 0.0)
    assert seen == {id(p) for p in model.parameters()}


def test_without_fast_parameters_all_take_one_rate() -> None:
    model = nn.Linear(2, 3)
    optimizer = adamw(model, 0.1, 0.0, "cpu")
    set_learning_rate(optimizer, 0.03)
    assert [group["lr"] for group in optimizer.param_groups] == [0.03, 0.03]
    model(torch.ones(1, 2)).sum().backward()
    before = model.weight.detach().clone()
    optimizer.step()
    assert (model.weight - before).abs().max() > 0
