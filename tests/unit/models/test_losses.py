"""The cross-entropy made in chunks against `torch.nn.functional.cross_entropy`."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from catalex.models import losses
from catalex.models.losses import LossSum, summed_cross_entropy


def problem(rows: int = 37, words: int = 53, width: int = 8) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    states = torch.randn(rows, width, requires_grad=True)
    table = torch.randn(words, width, requires_grad=True)
    return states, table, torch.randint(words, (rows,)), torch.rand(rows) < 0.7


@pytest.mark.parametrize("chunk", [1, 53 * 5, 53 * 1000])  # one row, five rows with a rest, all rows
def test_value_and_gradients_equal_plain_cross_entropy(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK", chunk)
    states, table, targets, keep = problem()
    expected = F.cross_entropy((states @ table.T)[keep], targets[keep], reduction="sum")
    found = summed_cross_entropy(states, table, targets, keep)
    assert found.total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert found.count.item() == keep.sum().item()
    for ours, theirs in zip(
        torch.autograd.grad(3 * found.total, (states, table)),
        torch.autograd.grad(3 * expected, (states, table)),
        strict=True,
    ):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_rows_that_do_not_count_may_hold_any_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on the path of a GPU, where rows are weighted instead of left out."""
    states, table, targets, keep = problem()
    targets = torch.where(keep, targets, -100)
    left_out = summed_cross_entropy(states, table, targets, keep)
    safe = torch.where(keep, targets, 0)
    weighted = losses._SummedCrossEntropy.apply(states, table, safe, keep, torch.float32, True)
    assert weighted.item() == pytest.approx(left_out.total.item(), rel=1e-6)
    for ours, theirs in zip(
        torch.autograd.grad(weighted, (states, table)),
        torch.autograd.grad(left_out.total, (states, table)),
        strict=True,
    ):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_nothing_to_count_gives_zero_and_zero_gradients() -> None:
    states, table, targets, keep = problem()
    found = summed_cross_entropy(states, table, targets, torch.zeros_like(keep))
    found.mean().backward()
    assert found.total.item() == found.count.item() == found.mean().item() == 0
    assert not states.grad.any()
    assert not table.grad.any()


def test_a_frozen_head_or_no_gradient_at_all() -> None:
    states, table, targets, keep = problem()
    expected = summed_cross_entropy(states, table, targets, keep)
    (slope,) = torch.autograd.grad(expected.total, states)
    frozen = summed_cross_entropy(states, table.detach(), targets, keep)
    assert torch.allclose(torch.autograd.grad(frozen.total, states)[0], slope)
    with torch.no_grad():
        assert summed_cross_entropy(states, table, targets, keep).total == expected.total


def test_under_autocast_the_result_stays_float32() -> None:
    states, table, targets, keep = problem(200, 300, 16)
    exact = summed_cross_entropy(states, table, targets, keep)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = summed_cross_entropy(states, table, targets, keep)
    assert rough.total.dtype == rough.count.dtype == torch.float32
    assert rough.total.item() == pytest.approx(exact.total.item(), rel=1e-2)
    assert rough.total.item() != exact.total.item()  # the products did run in bfloat16
    of_states, of_table = torch.autograd.grad(rough.total, (states, table))
    assert of_states.dtype == of_table.dtype == torch.float32
    for ours, theirs in zip(
        (of_states, of_table), torch.autograd.grad(exact.total, (states, table)), strict=True
    ):
        assert F.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.999


def test_mean_divides_by_what_counts() -> None:
    assert LossSum(torch.tensor(6.0), torch.tensor(4.0)).mean().item() == 1.5
