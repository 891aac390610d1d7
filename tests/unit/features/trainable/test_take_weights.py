"""Stored weights that do not fit are named; nothing is half loaded."""

from __future__ import annotations

import pytest
import torch

from catalex.errors import CatalexError
from catalex.features.trainable.weights import take_weights


def own() -> dict[str, torch.Tensor]:
    return {"heads": torch.zeros(2, 3), "biases": torch.zeros(2)}


GOOD = {"heads": torch.ones(2, 3), "biases": torch.full((2,), 1 / 3)}


def test_copies_bit_for_bit() -> None:
    mine = own()
    take_weights(mine, GOOD, "e")
    assert all(torch.equal(mine[name], GOOD[name]) for name in GOOD)
    assert mine["heads"].data_ptr() != GOOD["heads"].data_ptr()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"heads": torch.ones(2, 3)}, r"weights of encoder 'e': tensor 'biases' is missing"),
        ({**GOOD, "haeds": torch.ones(1)}, r"tensor 'haeds' is unknown \(allowed: heads\)"),
        ({**GOOD, "biases": torch.ones(3)}, r"'biases' has another shape \(found \(3,\); allowed: \(2,\)\)"),
        ({**GOOD, "biases": torch.ones(2).half()}, r"'biases' has another type \(found 'torch.float16'"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_taken(
    wrong: dict[str, torch.Tensor], message: str
) -> None:
    mine = own()
    with pytest.raises(CatalexError, match=message) as caught:
        take_weights(mine, wrong, "e")
    assert "Load the tokenizer with the encoder and options" in str(caught.value)
    assert not any(value.any() for value in mine.values())
