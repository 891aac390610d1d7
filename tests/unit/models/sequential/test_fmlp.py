"""FMLP-Rec's network: its filter is the fast Fourier transform's, and a circular convolution."""

from __future__ import annotations

import pytest
import torch

from catalex.models.sequential.fmlp import FilterBlock, FMLPModel
from catalex.models.sequential.parts import turned

ITEMS, LENGTH = 30, 6


@pytest.mark.parametrize("length", [1, 2, 5, 6, 20, 50])
def test_the_filter_equals_the_fast_transform(length):
    torch.manual_seed(length)
    block, x = FilterBlock(length, 8, 0.0), torch.randn(3, length, 8)
    with torch.no_grad():
        block.filter.normal_()
    spectrum = torch.fft.rfft(x, dim=1, norm="ortho") * torch.complex(*block.filter)
    expected = torch.fft.irfft(spectrum, n=length, dim=1, norm="ortho")
    torch.testing.assert_close(block.filtered(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [5, 6])
def test_a_filter_of_ones_changes_nothing(length):
    block, x = FilterBlock(length, 4, 0.0), torch.randn(2, length, 4)
    with torch.no_grad():
        block.filter[0], block.filter[1] = 1.0, 0.0
    torch.testing.assert_close(block.filtered(x), x, rtol=1e-5, atol=1e-6)


def test_the_filter_is_a_circular_convolution():
    """Turning the window round turns the outcome round."""
    block, x = FilterBlock(7, 4, 0.0), torch.randn(2, 7, 4)
    torch.testing.assert_close(block.filtered(x.roll(3, 1)), block.filtered(x).roll(3, 1))


def test_windows_are_padded_on_the_left():
    rows = torch.tensor([[1, 2, 3], [4, ITEMS, ITEMS], [ITEMS, ITEMS, ITEMS]])
    expected = [[ITEMS, 1, 2, 3], [ITEMS, ITEMS, ITEMS, 4], [ITEMS] * 4]
    assert turned(rows, ITEMS, 4).tolist() == expected


def test_the_last_state_reads_the_whole_history_and_nothing_else():
    torch.manual_seed(0)
    model = FMLPModel(ITEMS, LENGTH, hidden=8, layers=2, dropout=0.3).eval()
    rows = torch.tensor([[1, 2, 3, ITEMS, ITEMS, ITEMS], [4, 5, 6, 7, 8, 9]])
    found = model.last(rows, torch.tensor([3, 6]))
    torch.testing.assert_close(found[:1], model.last(rows[:1, :3], torch.tensor([3])))
    changed = rows.clone()
    changed[:, 0] = 20
    assert not torch.allclose(found, model.last(changed, torch.tensor([3, 6])))
    assert model.logits(found).shape == (2, ITEMS)
