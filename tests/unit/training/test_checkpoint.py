"""Checkpoints: everything comes back, and a kill at any moment leaves a whole one."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from catalex.errors import CatalexError
from catalex.training import checkpoint as module
from catalex.training.checkpoint import load_checkpoint, save_checkpoint
from catalex.training.optim import adam


def trained(steps: int, seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1))
    optimizer = adam(model, 0.01, 0.1, "cpu")
    for _ in range(steps):
        step(model, optimizer)
    return model, optimizer


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(2, 3)).square().sum().backward()
    optimizer.step()


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def save(folder: Path, steps: int, best: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
    model, optimizer = trained(steps)
    save_checkpoint(folder, model, optimizer, best, {"steps": steps})
    return flat(model)


def test_nothing_there_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "nowhere", *trained(0)) is None


def test_weights_moments_best_and_state_come_back(tmp_path: Path) -> None:
    model, optimizer = trained(3)
    best = {name: value.clone() + 1 for name, value in model.state_dict().items()}
    save_checkpoint(tmp_path, model, optimizer, best, {"epoch": 2, "curve": [0.5, 0.1]})
    other, its_optimizer = trained(1, seed=9)
    found = load_checkpoint(tmp_path, other, its_optimizer)
    assert found is not None
    state, restored = found
    assert state == {"epoch": 2, "curve": [0.5, 0.1]}
    assert restored is not None
    assert all(torch.equal(restored[name], value) for name, value in best.items())
    assert torch.equal(flat(other), flat(model))
    for _ in range(3):  # equal moments: both go on alike
        step(model, optimizer)
        step(other, its_optimizer)
    assert torch.equal(flat(other), flat(model))


def test_before_the_first_validation_there_is_no_best(tmp_path: Path) -> None:
    save(tmp_path, 2)
    found = load_checkpoint(tmp_path, *trained(0))
    assert found is not None
    assert found[1] is None


def test_a_new_checkpoint_replaces_the_old_one_and_leaves_nothing_else(tmp_path: Path) -> None:
    save(tmp_path, 1, best={"0.bias": torch.ones(4)})
    expected = save(tmp_path, 4)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]
    model, optimizer = trained(0)
    found = load_checkpoint(tmp_path, model, optimizer)
    assert found == ({"steps": 4}, None)
    assert torch.equal(flat(model), expected)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("moment", range(8))
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(
    tmp_path: Path, moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The save dies before its first, second, .. change of the disk; the old or the new one is then found."""
    weights = {1: save(tmp_path, 1), 4: trained(4)[0]}
    new = flat(weights[4])
    calls = 0

    def dying(function: Any) -> Any:
        def call(*values: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > moment:
                raise KilledError
            return function(*values, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_arrays", dying(module.write_arrays))
        patch.setattr(module, "write_json", dying(module.write_json))
        patch.setattr(module.os, "replace", dying(os.replace))
        with pytest.raises(KilledError):
            save(tmp_path, 4)
    model, optimizer = trained(0)
    found = load_checkpoint(tmp_path, model, optimizer)
    assert found is not None
    steps = found[0]["steps"]
    assert torch.equal(flat(model), {1: weights[1], 4: new}[steps])
    assert save(tmp_path, 4) is not None  # and the next save cleans up
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


def test_a_full_disk_is_told_in_a_sentence_and_the_old_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = save(tmp_path, 1)

    def full(*values: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "replace", full)
        with pytest.raises(CatalexError, match="disk is full"):
            save(tmp_path, 4)
    model, optimizer = trained(0)
    load_checkpoint(tmp_path, model, optimizer)
    assert torch.equal(flat(model), expected)
