"""Parameters that learn faster than the rest."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from catalex.training.optim import Decay, Recipe, adam, set_learning_rate


def test_fast_parameters_take_their_multiple_of_every_rate() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    optimizer = adam(model, 0.1, 0.5, "cpu", fast=model[1].parameters(), ratio=10.0)
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
    optimizer = adam(model, 0.1, 0.0, "cpu")
    set_learning_rate(optimizer, 0.03)
    assert [group["lr"] for group in optimizer.param_groups] == [0.03, 0.03]
    model(torch.ones(1, 2)).sum().backward()
    before = model.weight.detach().clone()
    optimizer.step()
    assert (model.weight - before).abs().max() > 0


def test_a_batch_of_the_base_size_changes_no_recipe() -> None:
    recipe = Recipe(1e-3, 0.05, 300)
    assert recipe.for_batch(512, None) is recipe
    assert recipe.for_batch(512, 512) is recipe
    assert recipe.for_batch(64, 1024).for_batch(1024, 64).betas == pytest.approx(recipe.betas)


def test_a_scaled_recipe_takes_the_same_path_with_fewer_steps() -> None:
    """Gradients of pure noise: the weights after one epoch spread as far at four times the batch."""

    def spread(batch: int) -> float:
        recipe = Recipe(1e-3, 0.0, 0).for_batch(batch, 64)
        model = nn.Linear(3000, 1, bias=False)
        nn.init.zeros_(model.weight)
        optimizer = adam(
            model, recipe.learning_rate, recipe.weight_decay, "cpu", betas=recipe.betas, eps=recipe.eps
        )
        noise = torch.Generator().manual_seed(0)
        for _ in range(400 * 64 // batch):
            model.weight.grad = torch.randn(1, 3000, generator=noise) / np.sqrt(batch)
            optimizer.step()
        return float(model.weight.detach().std())

    assert spread(256) == pytest.approx(spread(64), rel=0.12)


def test_a_scaled_recipe_decays_as_much_in_an_epoch() -> None:
    def left(batch: int) -> float:
        recipe = Recipe(1e-3, 0.05, 0).for_batch(batch, 64)
        return float((1 - recipe.learning_rate * recipe.weight_decay) ** (100_000 / batch))

    assert left(512) == pytest.approx(left(64), rel=1e-3)


def test_l2_shrinks_what_has_no_gradient_by_whole_steps_and_decoupled_decay_by_a_share() -> None:
    """The embedding of an item that no batch holds: gradient zero, decay alone."""

    def after(decay: Decay) -> torch.Tensor:
        model = nn.Embedding(2, 3)
        nn.init.ones_(model.weight)
        optimizer = adam(model, 0.01, 1e-4, "cpu", decay=decay)
        for _ in range(10):
            model.weight.grad = torch.tensor([[0.0] * 3, [1.0] * 3])
            optimizer.step()
        return model.weight.detach()

    torch.testing.assert_close(after("l2")[0], torch.full((3,), 0.9), atol=1e-3, rtol=0)
    torch.testing.assert_close(after("decoupled")[0], torch.full((3,), 1 - 10 * 1e-6), atol=5e-7, rtol=0)
    torch.testing.assert_close(after("l2")[1], after("decoupled")[1], atol=1e-4, rtol=0)


def test_l2_is_of_all_parameters_and_no_matter_of_the_batch() -> None:
    kinds = {decay: adam(nn.Linear(2, 3), 0.1, 0.5, "cpu", decay=decay) for decay in ("l2", "decoupled")}
    assert [group["weight_decay"] for group in kinds["l2"].param_groups] == [0.5, 0.5]
    assert [group["weight_decay"] for group in kinds["decoupled"].param_groups] == [0.5, 0.0]
    assert not isinstance(kinds["l2"], torch.optim.AdamW)
    scaled = Recipe(1e-3, 0.05, 0, "l2").for_batch(512, 64)
    assert (scaled.weight_decay, scaled.decay) == (0.05, "l2")
