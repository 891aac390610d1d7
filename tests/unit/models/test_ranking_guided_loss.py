"""LETTER's ranking-guided generation loss: the temperature of the training loss."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from catalex.models.t5 import IGNORE, T5, T5Options
from catalex.models.t5_packed import packed_loss
from catalex.recommenders.generative import GenerativeTraining
from support.packed import grouped, in_rows, padded, random_examples

OPTIONS = T5Options(layers=1, hidden=16, feed_forward=32, heads=2, head_width=8, dropout=0.0)


def world() -> tuple[T5, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = T5(20, OPTIONS)
    tokens = torch.randint(1, 20, (4, 8))
    labels = torch.randint(1, 20, (4, 4))
    labels[3] = IGNORE
    return model, tokens, labels


@pytest.mark.parametrize("tau", [0.7, 1.0, 1.2])
def test_it_is_the_cross_entropy_of_divided_logits(tau: float) -> None:
    model, tokens, labels = world()
    logits = model(tokens, labels).flatten(0, 1)
    slow = -(logits / tau).log_softmax(-1)[torch.arange(12), labels[:3].flatten()].mean()
    torch.testing.assert_close(model.loss(tokens, labels, temperature=tau), slow)


def test_one_is_plain_cross_entropy_and_the_default() -> None:
    model, tokens, labels = world()
    plain = F.cross_entropy(model(tokens, labels).flatten(0, 1), labels.flatten(), ignore_index=IGNORE)
    torch.testing.assert_close(model.loss(tokens, labels), plain)
    assert GenerativeTraining().loss_temperature == 1.0


def test_it_leaves_the_arg_max_and_weighs_hard_negatives_more() -> None:
    logits = torch.tensor([[2.0, 1.9, -1.0, -3.0]], requires_grad=True)
    slopes = {}
    for tau in (1.0, 0.5):
        assert int((logits / tau).argmax()) == int(logits.argmax())
        (slope,) = torch.autograd.grad(F.cross_entropy(logits / tau, torch.tensor([0])), logits)
        slopes[tau] = slope[0, 1:] / slope[0, 1:].sum()  # share of each negative
    assert slopes[0.5][0] > slopes[1.0][0]
    assert slopes[0.5][2] < slopes[1.0][2]


def test_packed_training_computes_the_same() -> None:
    torch.manual_seed(0)
    model = T5(20, OPTIONS)
    examples = random_examples([3, 7, 5, 3], 20, seed=0)
    both = padded(examples)
    expected = model.loss(both["tokens"], both["labels"], temperature=0.7)
    for batch in (grouped(examples), in_rows(examples, 8)):
        torch.testing.assert_close(packed_loss(model, batch, temperature=0.7), expected)
