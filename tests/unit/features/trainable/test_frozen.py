"""``frozen``: heads that begin as rotations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from catalex.errors import CatalexError
from catalex.features import ItemContent
from catalex.features.trainable.frozen import FrozenEncoder, FrozenOptions


def build(width: int = 6, inputs: int = 6, levels: int = 3, seed: int = 0) -> FrozenEncoder:
    return FrozenEncoder(FrozenOptions(width=width), levels=levels, seed=seed, vectors_width=inputs)


def unit_vectors(count: int, width: int) -> np.ndarray[Any, Any]:
    drawn = np.random.default_rng(0).normal(size=(count, width)).astype(np.float32)
    unit: np.ndarray[Any, Any] = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return unit


@pytest.mark.parametrize(("width", "inputs"), [(6, 6), (9, 6), (4, 6)])
def test_heads_begin_as_scaled_isometries(width: int, inputs: int) -> None:
    encoder = build(width, inputs)
    for head in encoder.heads.detach():
        product = head.T @ head if width >= inputs else head @ head.T
        expected = max(width, inputs) * torch.eye(min(width, inputs))
        torch.testing.assert_close(product, expected, atol=1e-4, rtol=0.0)
    assert not torch.allclose(encoder.heads[0], encoder.heads[1])


@pytest.mark.parametrize(("width", "inputs"), [(64, 64), (96, 64)])
def test_every_level_keeps_all_angles_and_unit_size(width: int, inputs: int) -> None:
    vectors = unit_vectors(20, inputs)
    encoder = build(width, inputs)
    index = encoder.index([ItemContent("x")] * 20, vectors)
    states = encoder(index.batch(np.arange(20))).detach()
    torch.testing.assert_close(states.square().mean(-1), torch.ones(20, 3))
    unit = torch.nn.functional.normalize(states, dim=-1)
    for level in range(3):
        torch.testing.assert_close(
            unit[:, level] @ unit[:, level].T, torch.from_numpy(vectors @ vectors.T), atol=1e-5, rtol=0.0
        )


def test_equals_the_heads_one_by_one() -> None:
    encoder, vectors = build(4, 6), unit_vectors(5, 6)
    with torch.no_grad():
        encoder.biases.normal_()
    index = encoder.index([ItemContent("x")] * 5, vectors)
    rows = np.array([4, 0, 2])
    states = encoder(index.batch(rows)).detach().numpy()
    for i, row in enumerate(rows):
        for level in range(3):
            expected = (
                encoder.heads.detach().numpy()[level] @ vectors[row] + encoder.biases.detach().numpy()[level]
            )
            np.testing.assert_allclose(states[i, level], expected, atol=1e-5)


def test_batch_hands_on_the_vectors_to_reconstruct() -> None:
    vectors = unit_vectors(5, 6)
    index = build().index([ItemContent("x")] * 5, vectors)
    np.testing.assert_array_equal(index.batch(np.array([3, 1]))["vectors"].numpy(), vectors[[3, 1]])
    assert index.text is None


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (None, r"needs a content vector for every item \(allowed: \(2, 6\)"),
        (np.zeros((3, 6), np.float32), r"found \(3, 6\); allowed: \(2, 6\)"),
        (np.zeros((2, 5), np.float32), r"found \(2, 5\); allowed: \(2, 6\)"),
        (np.array([[0] * 6, [np.nan] * 6], np.float32), r"the content vector of item 1 is not finite"),
    ],
)
def test_vectors_that_do_not_fit_are_a_sentence(vectors: Any, message: str) -> None:
    with pytest.raises(CatalexError, match=message):
        build().index([ItemContent("a"), ItemContent("b")], vectors)
