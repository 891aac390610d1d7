"""BSARec: the frequency split against the fast transform; its two ends, attention and frequencies alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from catalex.models.sequential.bsarec import BSARecModel, FrequencyBlock, low_pass
from catalex.models.sequential.parts import Block

ITEMS, LENGTH = 30, 6


@pytest.mark.parametrize("length", [1, 5, 6, 20, 50])
@pytest.mark.parametrize("cutoff", [0, 3, 5, 99])
def test_the_low_part_equals_the_fast_transform(length, cutoff):
    x = torch.randn(2, length, 3)
    spectrum = torch.fft.rfft(x, dim=1, norm="ortho")
    spectrum[:, cutoff // 2 + 1 :] = 0
    expected = torch.fft.irfft(spectrum, n=length, dim=1, norm="ortho")
    torch.testing.assert_close(low_pass(length, cutoff // 2 + 1) @ x, expected, rtol=1e-4, atol=1e-5)


def test_without_a_cutoff_the_low_part_is_the_mean():
    torch.testing.assert_close(low_pass(8, 1), torch.full((8, 8), 1 / 8), rtol=0, atol=1e-6)


def test_parts_are_weighted_apart():
    block, x = FrequencyBlock(LENGTH, 8, 2, 0.0, alpha=0.5, cutoff=3), torch.randn(2, LENGTH, 8)
    low = low_pass(LENGTH, 2) @ x
    torch.testing.assert_close(block.rescaled(x), low + block.root_weight**2 * (x - low))
    with torch.no_grad():
        block.root_weight.fill_(-1.0)  # squared it is one: both parts as they were
    torch.testing.assert_close(block.rescaled(x), x)


def test_alpha_0_is_attention_alone_and_alpha_1_frequencies_alone():
    torch.manual_seed(0)
    block = FrequencyBlock(LENGTH, 8, 2, 0.0, alpha=0.0, cutoff=3).eval()
    plain = Block(8, 2, 0.0).eval()
    plain.load_state_dict({k: v for k, v in block.state_dict().items() if k in plain.state_dict()})
    x = torch.randn(2, LENGTH, 8)
    torch.testing.assert_close(block(x), plain(x))
    block.alpha = 1.0
    middle = block.frequency_norm(x + block.rescaled(x))
    expected = block.feed_norm(middle + block.narrow(F.gelu(block.widen(middle))))
    torch.testing.assert_close(block(x), expected)


def test_the_last_state_reads_the_history_and_no_padding_makes_it_nan():
    torch.manual_seed(0)
    model = BSARecModel(ITEMS, LENGTH, 8, layers=2, heads=2, dropout=0.3, alpha=0.7, cutoff=3).eval()
    rows = torch.tensor([[1, ITEMS, ITEMS, ITEMS, ITEMS, ITEMS], [4, 5, 6, 7, 8, 9]])
    found = model.last(rows, torch.tensor([1, 6]))
    assert found.isfinite().all()
    torch.testing.assert_close(found[:1], model.last(rows[:1, :1], torch.tensor([1])))
    changed = rows.clone()
    changed[:, 0] = 20
    assert not torch.allclose(found, model.last(changed, torch.tensor([1, 6])))


def test_attention_is_causal():
    """Without the frequency path no position knows a later one (official code: unidirectional mask)."""
    torch.manual_seed(0)
    model = BSARecModel(ITEMS, LENGTH, 8, layers=2, heads=2, dropout=0.0, alpha=0.0, cutoff=3).eval()
    rows = torch.tensor([[4, 5, 6, 7, 8, 9]])
    changed = rows.clone()
    changed[:, 4] = 20
    torch.testing.assert_close(model(rows)[:, :4], model(changed)[:, :4])


@pytest.mark.parametrize("keep", [None, torch.ones(2, LENGTH, dtype=torch.bool)])
def test_attention_weights_are_dropped_by_a_share_of_their_own(keep):
    torch.manual_seed(0)
    x = torch.randn(2, LENGTH, 8)
    for dropout, own, expected in ((0.5, None, 0.5), (0.5, 0.0, 0.0), (0.0, 0.5, 0.5)):
        assert FrequencyBlock(LENGTH, 8, 2, dropout, 0.7, 3, own).attention_dropout == expected
    still, dropping = (FrequencyBlock(LENGTH, 8, 2, 0.0, 0.7, 3, own).train() for own in (0.0, 0.5))
    torch.testing.assert_close(still(x, keep), still.eval()(x, keep))
    assert not torch.allclose(dropping(x, keep), dropping.eval()(x, keep), atol=1e-3)
