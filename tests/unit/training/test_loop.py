"""The training loop: early stopping, exact resume, seeds, precision, and two processes against one."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from catalex.errors import CatalexError
from catalex.training.loop import Batch, TrainingOptions, TrainingReport, train
from catalex.training.optim import learning_rate
from catalex.training.seeds import derive, generator

OPTIONS = TrainingOptions(
    epochs=6,
    batch_size=8,
    learning_rate=0.05,
    weight_decay=0.01,
    clip_norm=1.0,
    schedule="cosine",
    warmup_steps=3,
)


class KilledError(Exception):
    pass


def run(
    partial: Path | None = None,
    options: TrainingOptions = OPTIONS,
    kill_at: int | None = None,
    metrics: list[float] | None = None,
    seed: int = 0,
) -> tuple[nn.Module, TrainingReport]:
    """Fit a line with dropout; raise `KilledError` when batch number `kill_at` of the run is asked for."""
    torch.manual_seed(derive(seed, "weights"))
    model = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 1))
    asked = 0

    class Plan:
        def __init__(self, epoch: int) -> None:
            self.x = torch.from_numpy(generator(seed, "epoch", epoch).normal(size=(5, 8, 3))).float()

        def __len__(self) -> int:
            return 5

        def __getitem__(self, index: int) -> Batch:
            nonlocal asked
            asked += 1
            if asked == kill_at:
                raise KilledError
            return {"x": self.x[index]}

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return (model(batch["x"]).squeeze(1) - batch["x"].sum(1)).square().mean()

    given = iter(metrics or [])
    fixed = torch.linspace(-1, 1, 30).view(10, 3)

    def validate(model: nn.Module) -> float:
        assert not model.training
        return next(given) if metrics else -(model(fixed).squeeze(1) - fixed.sum(1)).square().mean().item()

    return model, train(
        model,
        plan=Plan,
        loss=loss,
        validate=validate,
        options=options,
        seed=seed,
        device="cpu",
        partial=partial,
        name="test",
    )


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_training_improves_and_is_reproducible() -> None:
    model, report = run()
    again, _ = run()
    other, _ = run(seed=1)
    assert report.curves["loss"][-1] < 0.5 * report.curves["loss"][0]
    assert torch.equal(weights(model), weights(again))
    assert not torch.equal(weights(model), weights(other))
    assert report.steps == 30


@pytest.mark.parametrize("kill_at", [1, 4, 6, 13, 25, 30])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path, kill_at: int) -> None:
    options = OPTIONS.model_copy(update={"checkpoint_seconds": 0.0})
    expected, facts = run(options=options)
    with pytest.raises(KilledError):
        run(tmp_path, options, kill_at=kill_at)
    model, report = run(tmp_path, options)
    assert torch.equal(weights(model), weights(expected))
    assert report.curves == facts.curves
    assert (report.best_epoch, report.best_metric, report.steps) == (
        facts.best_epoch,
        facts.best_metric,
        facts.steps,
    )


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    expected, _ = run(tmp_path)
    model, report = run(tmp_path, kill_at=1)
    assert torch.equal(weights(model), weights(expected))
    assert report.steps == 30


def test_stops_after_patience_and_keeps_the_best_weights() -> None:
    options = OPTIONS.model_copy(update={"patience": 2})
    model, report = run(options=options, metrics=[0.1, 0.3, 0.2, 0.3, 0.9])
    assert report.curves["epoch"] == [1, 2, 3, 4]
    assert (report.best_epoch, report.best_metric) == (2, 0.3)
    until_best, _ = run(
        options=OPTIONS.model_copy(update={"evaluate_every": 2, "patience": 1}), metrics=[0.3, 0.1]
    )
    assert torch.equal(weights(model), weights(until_best))


def test_a_diverging_loss_is_reported_with_a_remedy() -> None:
    with pytest.raises(CatalexError, match=r"no longer a number.*learning_rate"):
        run(
            options=OPTIONS.model_copy(
                update={"learning_rate": 1e30, "clip_norm": None, "schedule": "constant"}
            )
        )


def test_bf16_products_change_little() -> None:
    full, _ = run(options=OPTIONS)
    half, _ = run(options=OPTIONS.model_copy(update={"precision": "bf16"}))
    assert not torch.equal(weights(full), weights(half))
    assert torch.allclose(weights(full), weights(half), atol=0.2)


def test_schedules() -> None:
    rates = [learning_rate(s, peak=1.0, total=100, warmup=10, schedule="cosine") for s in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0)
    assert learning_rate(50, peak=2.0, total=100, warmup=0, schedule="constant") == 2.0
    assert learning_rate(399, peak=1.0, total=1000, warmup=100, schedule="inverse-sqrt") == pytest.approx(0.5)


SCRIPT = """
import json
import json
import os
import torch
from accelerate import PartialState
from torch import nn
from catalex.training.distributed import global_mean, process_count, process_index
from catalex.training.loop import TrainingOptions, train
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.always, self.sometimes = nn.Linear(3, 1), nn.Linear(3, 1)
    def forward(self, x):
        return self.always(x).squeeze(1)
torch.manual_seed(0)
model = Model()
if os.environ.get("RANK") == "1":  # they have not met yet
    model.always.weight.data += 1.0
x = torch.randn(4, 7, 3)
x[:, 1::2] -= 9.0  # of two processes the first alone has rows that go through `sometimes`
seen = []
class Plan:
    def __len__(self): return 4
    def __getitem__(self, i):
        if i == 4: raise IndexError
        return {"x": x[i]}
def loss(m, b):
    x = b["x"]
    mean = global_mean((m(x) - x.sum(1)).square().sum(), len(x))
    near = x[:, 0] > -4.0
    if bool(near.any()):
        mean = mean + m.sometimes(x[near]).square().sum() * process_count() / 28
    return mean
def validate(m):
    seen.append(0)
    return float(len(seen) == 2)
report = train(model, plan=lambda e: Plan(), loss=loss, validate=validate, seed=0, device="cpu", partial=None,
               options=TrainingOptions(epochs=5, batch_size=7, learning_rate=0.05, patience=2), name="two")
assert len(report.curves["epoch"]) == 4 and report.best_epoch == 2
assert len(seen) == (0 if process_index() else 4)
weights = [v for p in model.parameters() for v in p.flatten().tolist()]
with open(f"{os.environ['TOLD']}-{process_index()}.json", "w") as file:  # what two print can run together
    json.dump({"processes": process_count(), "weights": weights}, file)
PartialState().destroy_process_group()
"""


def test_two_processes_equal_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although shares differ in length and one parameter is used by the first process alone, where they start
    from other weights, and where only the main process has metrics."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    def weights_of(run: str, index: int, count: int) -> list[float]:
        told = json.loads((tmp_path / f"{run}-{index}.json").read_text())
        assert told["processes"] == count
        weights: list[float] = told["weights"]
        return weights

    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    done = subprocess.run(
        [sys.executable, *launcher, str(script)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "TOLD": str(tmp_path / "two")},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = weights_of("two", 0, 2), weights_of("two", 1, 2)
    assert first == second
    monkeypatch.setenv("TOLD", str(tmp_path / "one"))
    runpy.run_path(str(script))
    assert first == pytest.approx(weights_of("one", 0, 1), abs=1e-5)
