"""Balanced assignment: its sums, and a case that can be worked by hand."""

from __future__ import annotations

import pytest
import torch

from catalex.quantize.sinkhorn import sinkhorn


@pytest.mark.parametrize("shape", [(64, 8), (30, 30), (7, 20)])
def test_rows_sum_to_one_and_codes_carry_equal_mass(shape: tuple[int, int]) -> None:
    distances = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    plan = sinkhorn(distances, 0.05, 500)
    torch.testing.assert_close(plan.sum(1), torch.ones(shape[0], dtype=torch.float64))
    equal = torch.full((shape[1],), shape[0] / shape[1], dtype=torch.float64)
    torch.testing.assert_close(plan.sum(0), equal, rtol=1e-3, atol=0)


def test_crowded_codes_give_vectors_away() -> None:
    """All four prefer code 0; it keeps the two that would lose most by leaving it."""
    distances = torch.tensor([[0.0, 1.0], [0.0, 0.9], [0.0, 0.2], [0.0, 0.1]])
    assert sinkhorn(distances, 0.01, 200).argmax(1).tolist() == [0, 0, 1, 1]


def test_published_settings_do_not_overflow() -> None:
    distances = 1e4 * torch.rand(1024, 256, generator=torch.Generator().manual_seed(0))
    plan = sinkhorn(distances)
    assert torch.isfinite(plan).all()
    torch.testing.assert_close(plan.sum(1), torch.ones(1024, dtype=torch.float64))


def test_equal_distances_share_evenly() -> None:
    torch.testing.assert_close(sinkhorn(torch.ones(6, 3)), torch.full((6, 3), 1 / 3, dtype=torch.float64))


def test_too_small_an_epsilon_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 0\.0029"):
        sinkhorn(torch.ones(2, 2), 1e-4)
