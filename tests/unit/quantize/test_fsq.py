"""Finite scalar quantization against loops, and its gradient against that of the bound."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from catalex.quantize.fsq import Grid

PAPER = (8, 8, 8, 6, 5)


def test_index_and_value_go_round_for_all_codes() -> None:
    grid = Grid(PAPER)
    codes = torch.arange(grid.size)
    assert grid.size == 15_360
    values = grid.values(codes)
    assert torch.equal(grid.codes_of(values), codes)
    assert len(torch.unique(values, dim=0)) == grid.size
    assert values.abs().max() <= 1


def test_values_are_those_of_a_plain_loop() -> None:
    grid = Grid((3, 4))
    expected = [
        ((a - 1) / 1, (b - 2) / 2) for b, a in itertools.product(range(4), range(3))
    ]  # the first number is the lowest digit
    torch.testing.assert_close(grid.values(torch.arange(12)), torch.tensor(expected))


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=5, max_size=5))
def test_any_numbers_give_a_code_in_range_and_the_formula(numbers: list[float]) -> None:
    grid = Grid(PAPER)
    u = torch.tensor(numbers)
    expected, basis = 0, 1
    for n, value in zip(PAPER, numbers, strict=True):
        half, offset = (n - 1) * (1 - 1e-3) / 2, 0.5 * (n % 2 == 0)
        z = math.tanh(value + math.tan(offset / half)) * half - offset
        digit = round(z) + n // 2
        assert 0 <= digit < n
        expected += digit * basis
        basis *= n
    found = int(grid.codes(u))
    assert 0 <= found < grid.size
    close = ((grid.bound(u) % 1 - 0.5).abs() < 1e-4).any()  # float32 may round the other way at a border
    assert found == expected or bool(close)


@pytest.mark.parametrize("extreme", [1e6, -1e6, float("inf"), float("-inf")])
def test_extreme_numbers_stay_in_range(extreme: float) -> None:
    codes = Grid(PAPER).codes(torch.full((2, 5), extreme))
    assert ((codes >= 0) & (codes < 15_360)).all()


def test_the_gradient_is_that_of_the_bound() -> None:
    grid = Grid(PAPER)
    u = torch.randn(7, 5, dtype=torch.float32, requires_grad=True)
    weights = torch.randn(7, 5)
    (grid(u) * weights).sum().backward()
    expected = (1 - torch.tanh(u + grid.shift) ** 2) * grid.reach / grid.middle * weights
    torch.testing.assert_close(u.grad, expected)


def test_nearest_is_the_argmin_of_distances_and_distances_are_euclidean() -> None:
    grid = Grid((4, 3, 5))
    u = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    distances = grid.distances(u)
    bounded = grid.bound(u) / grid.middle
    slow = torch.cdist(bounded.double(), grid.values(torch.arange(grid.size)).double()).square()
    torch.testing.assert_close(distances.double(), slow, rtol=1e-4, atol=1e-5)
    assert torch.equal(grid.nearest(u), distances.argmin(1))


def test_borders_between_values_do_not_disagree() -> None:
    grid = Grid((5, 8))
    z = torch.arange(-1.5, 2, 1.0)[:, None].expand(-1, 2) * 1.0
    u = torch.atanh((z + grid.offset) / grid.reach) - grid.shift
    assert torch.equal(grid.nearest(u), grid.distances(u).argmin(1))


def test_a_number_with_one_value_is_refused() -> None:
    with pytest.raises(ValueError, match="at least two values"):
        Grid((8, 1))
