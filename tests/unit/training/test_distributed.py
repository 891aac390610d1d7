"""What several processes compute together is what one computes on the joined batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from catalex.tokenizers.alignment import alignment_loss
from catalex.training import distributed
from catalex.training.distributed import (
    average_gradients,
    gather_with_gradient,
    global_mean,
    process_count,
    process_index,
    row_counts,
    share,
)

LOSSES = ("alignment", "masked sum", "one item", "nothing", "images on one process")


class Toy(nn.Module):
    """An encoder with two heads, one of which nobody uses and one only some do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(6, 8)
        self.head = nn.Linear(8, 1)
        self.sometimes = nn.Linear(8, 1)
        self.never = nn.Linear(8, 1)
        self.frozen = nn.Linear(8, 1).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.body(x))  # type: ignore[no-any-return]


def compute(which: str) -> dict[str, Any]:
    """One loss on this process's share of a batch of 7, its value and its averaged gradients."""
    generator = torch.Generator().manual_seed(1)
    content, near = torch.randn(2, 7, 3, 6, generator=generator)
    rows = torch.tensor([0, 1, 2, 3, 4, 5, 6])
    positive_rows = torch.tensor([1, 0, 1, 9, 4, 2, 9])  # false negatives fall on both sides of the cut
    weights = torch.tensor([1.0, 2.0, 0.0, 0.5, 1.0, 0.0, 4.0])  # shares of 6 and 2.5
    if which == "images on one process":
        weights = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0])  # of 4 and 0
    if which == "one item":
        content, near, rows, positive_rows = content[:1], near[:1], rows[:1], positive_rows[:1]
    x, y, i, j, w = (share(t) for t in (content, near, rows, positive_rows, weights))
    model = Toy()
    if which in ("alignment", "one item"):
        loss = alignment_loss(model(x), model(y), i, j)
    elif which == "masked sum":
        loss = global_mean((w * model.head(model(x)).mean(dim=(1, 2))).sum(), w.sum())
    elif which == "nothing":
        loss = global_mean(0 * model.head(model(x)).sum(), 0)
    else:
        chosen = w > 0
        loss = global_mean(model.head(model(x)).square().sum(), x.shape[0] * 3)
        if bool(chosen.any()):  # only process 0 of 2 goes here, so no gather may happen inside
            loss = loss + model.sometimes(model(x[chosen])).square().sum() * process_count() / 12
    loss.backward()
    average_gradients(model)
    gradients = {
        name: None if p.grad is None else p.grad.flatten().tolist() for name, p in model.named_parameters()
    }
    return {"loss": loss.item(), "gradients": gradients}


def plain_facts() -> dict[str, Any]:
    """What the gathers give."""
    mine = torch.full((2 - process_index(), 2), float(process_index()), requires_grad=True)
    joined = gather_with_gradient(mine)
    (joined * torch.arange(1.0, 7.0).view(3, 2)[: len(joined)] * (1 + process_index())).sum().backward()
    assert mine.grad is not None
    return {
        "rows": joined.tolist(),
        "gradient": mine.grad.tolist(),
        "integers": gather_with_gradient(torch.tensor([process_index()] * (1 + process_index()))).tolist(),
        "halves": gather_with_gradient(torch.ones(1, dtype=torch.bfloat16)).dtype == torch.bfloat16,
        "counts": row_counts(mine),
        "share": share([10, 11, 12, 13, 14]),
    }


SCRIPT = """
import importlib.util, json, os, sys
import torch.distributed as dist
folder, rank = sys.argv[1], int(sys.argv[2])
spec = importlib.util.spec_from_file_location("checked", {here!r})
checked = importlib.util.module_from_spec(spec)
spec.loader.exec_module(checked)
dist.init_process_group("gloo", init_method="file://" + folder + "/meet", rank=rank, world_size=2)
found = {{which: checked.compute(which) for which in checked.LOSSES}}
checked.distributed.BUCKET = 3  # many messages
found["small buckets"] = checked.compute("alignment")
found["plain"] = checked.plain_facts()
with open(folder + f"/{{rank}}.json", "w") as file:
    json.dump(found, file)
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two gloo processes found."""
    folder: Path = tmp_path_factory.mktemp("gloo")
    script = folder / "script.py"
    script.write_text(SCRIPT.format(here=__file__))
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, str(script), str(folder), str(rank)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in started:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors[-3000:]
    finally:
        for process in started:
            process.kill()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("which", [*LOSSES, "small buckets"])
def test_two_processes_equal_one_on_the_joined_batch(two: list[dict[str, Any]], which: str) -> None:
    expected = compute("alignment" if which == "small buckets" else which)
    assert [one[which]["gradients"] for one in two[:1]] == [one[which]["gradients"] for one in two[1:]]
    found = two[0][which]
    for name, gradient in expected["gradients"].items():
        if gradient is None:
            assert found["gradients"][name] is None, name
        else:
            assert found["gradients"][name] == pytest.approx(gradient, rel=1e-4, abs=1e-6), name
    if which != "images on one process":  # there the value is the processes' average
        assert [one[which]["loss"] for one in two] == pytest.approx(
            [expected["loss"]] * 2, rel=1e-6, abs=1e-7
        )
    moved = max(abs(v) for g in expected["gradients"].values() if g for v in g)
    assert (moved > 1e-3) == (which not in ("nothing", "one item"))


def test_gathers_keep_process_order_and_sum_gradients(two: list[dict[str, Any]]) -> None:
    plain = [one["plain"] for one in two]
    for facts in plain:
        assert facts["rows"] == [[0, 0], [0, 0], [1, 1]]
        assert facts["integers"] == [0, 1, 1]
        assert facts["counts"] == [2, 1]
        assert facts["halves"]
    # Process 0 weighs by 1, process 1 by 2: together 3 times 1..6.
    assert plain[0]["gradient"] == [[3, 6], [9, 12]]
    assert plain[1]["gradient"] == [[15, 18]]
    assert [facts["share"] for facts in plain] == [[10, 12, 14], [11, 13]]


def test_one_process_is_left_alone() -> None:
    assert (process_count(), process_index()) == (1, 0)
    x = torch.randn(4, 2, requires_grad=True)
    assert gather_with_gradient(x) is x
    assert row_counts(x) == [4]
    model = Toy()
    model(torch.randn(2, 6)).sum().backward()
    before = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    average_gradients(model)
    for old, parameter in zip(before, model.parameters(), strict=True):
        assert (old is None) == (parameter.grad is None)
        assert old is None or torch.equal(old, parameter.grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [4, 4.0, torch.tensor(4), torch.tensor(4.0)])
def test_global_mean_of_one_process_is_the_mean(count: Any) -> None:
    x = torch.tensor([1.0, 2.0, 6.0, -1.0], requires_grad=True)
    mean = global_mean(x.sum(), count)
    mean.backward()
    assert mean.item() == 2.0
    assert x.grad is not None
    assert x.grad.tolist() == [0.25] * 4


@pytest.mark.parametrize("count", [0, torch.tensor(0), torch.tensor(0.0)])
def test_a_mean_of_nothing_is_zero_with_zero_gradient(count: Any) -> None:
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    mean = global_mean((0 * x).sum(), count)
    mean.backward()
    assert mean.item() == 0
    assert x.grad is not None
    assert x.grad.tolist() == [0, 0]


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize("size", [0, 1, 7, 16])
def test_every_row_is_in_exactly_one_share(size: int, processes: int) -> None:
    rows = np.arange(100, 100 + size)
    shares = [
        share(rows, SimpleNamespace(process_index=p, num_processes=processes)) for p in range(processes)
    ]
    assert sorted(np.concatenate(shares).tolist()) == rows.tolist()
    lengths = [len(one) for one in shares]
    assert max(lengths) - min(lengths) <= 1
    np.testing.assert_array_equal(share(rows), rows)


def test_buckets_keep_the_order_and_split_by_size_and_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "BUCKET", 5)
    gradients = [torch.zeros(n) for n in (2, 3, 1, 9, 1)] + [torch.zeros(1).bfloat16()]
    buckets = list(distributed._buckets(gradients))
    assert [[g.numel() for g in bucket] for bucket in buckets] == [[2, 3], [1], [9], [1], [1]]
    assert [g is h for g, h in zip([g for b in buckets for g in b], gradients, strict=True)] == [True] * 6
    assert list(distributed._buckets([])) == []
