"""Who sees whom in RecGPT, and its loss against plain cross-entropy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from catalex.models.recgpt import RecGPTModel

L, S, V, W = 4, 6, 30, 5


def model(**options: Any) -> RecGPTModel:
    torch.manual_seed(0)
    sizes = {"hidden": 16, "layers": 2, "heads": 2, "dropout": 0.1, **options}
    made = RecGPTModel(V, L, S, W, **sizes).eval()
    for parameter in made.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return made


def inputs(batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, V, (batch, S, L), generator=generator), torch.randn(
        batch, S, L, W, generator=generator
    )


def test_states_do_not_see_later_items() -> None:
    made, (tokens, slices) = model(), inputs()
    before = made(tokens, slices)
    for item in range(1, S):
        other, content = tokens.clone(), slices.clone()
        other[:, item:] = 1 + other[:, item:] % (V - 1)
        content[:, item:] += 1
        after = made(other, content)
        torch.testing.assert_close(after[:, :item], before[:, :item])
        assert not torch.allclose(after[:, item], before[:, item])


@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_last_token_of_an_item_reaches_the_first(bidirectional: bool) -> None:
    made, (tokens, slices) = model(bidirectional=bidirectional), inputs()
    before = made(tokens, slices)
    tokens[:, 2, 3] = 1 + tokens[:, 2, 3] % (V - 1)
    after = made(tokens, slices)
    assert torch.allclose(after[:, 2, 0], before[:, 2, 0]) != bidirectional
    torch.testing.assert_close(after[:, :2], before[:, :2])


def test_padding_changes_nothing() -> None:
    made, (tokens, slices) = model(), inputs()
    lengths = torch.tensor([2, 6, 3])
    padded, blank = tokens.clone(), slices.clone()
    for row, length in enumerate(lengths.tolist()):
        padded[row, length:], blank[row, length:] = 0, 0
    found = made.last(padded, blank, lengths)
    assert found.shape == (3, L, V)
    for row, length in enumerate(lengths.tolist()):
        alone = made.last(
            tokens[row : row + 1, :length], slices[row : row + 1, :length], lengths[row : row + 1]
        )
        torch.testing.assert_close(found[row], alone[0], rtol=1e-4, atol=1e-5)


def test_the_auxiliary_stream_can_be_left_out() -> None:
    tokens, slices = inputs()
    without, plain = model(auxiliary=False), model()
    torch.testing.assert_close(without(tokens, slices), without(tokens, slices + 1))
    assert not torch.allclose(plain(tokens, slices), plain(tokens, slices + torch.randn_like(slices)))


def test_the_loss_is_the_cross_entropy_of_the_next_items_tokens_and_ignores_pads() -> None:
    made, (tokens, slices) = model(), inputs()
    positions = torch.tensor([0, 1, 7, 0])  # row 0: items 0 and 1; row 1: item 1; the last is filling
    targets = torch.randint(1, V, (4, L))
    keep = torch.tensor([True, True, True, False])
    total, count = made.loss(tokens, slices, positions, targets, keep)
    assert int(count) == 3 * L
    logits = made.head(made(tokens, slices))
    slow = [
        F.cross_entropy(logits[row, item], target)
        for (row, item), target in zip(((0, 0), (0, 1), (1, 1)), targets[:3], strict=True)
    ]
    torch.testing.assert_close(total / count, torch.stack(slow).mean())
    targets[3] = 1
    torch.testing.assert_close(made.loss(tokens, slices, positions, targets, keep)[0], total)
