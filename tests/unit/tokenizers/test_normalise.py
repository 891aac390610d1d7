"""The affine map in front of a tokenizer does what its name says and can be undone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from catalex.tokenizers.normalise import Normalisation, Normaliser


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(5, 5, generator=generator)
    return torch.randn(400, 5, generator=generator) @ mixing + 3, torch.ones(400)


@pytest.mark.parametrize("kind", ["none", "centre", "standardise", "whiten"])
def test_inverse(kind: Normalisation) -> None:
    vectors, weights = data()
    normaliser = Normaliser.fit(kind, vectors, weights)
    torch.testing.assert_close(normaliser.invert(normaliser(vectors)), vectors, atol=1e-3, rtol=1e-3)
    again = Normaliser.from_arrays(normaliser.arrays())
    assert torch.equal(again(vectors), normaliser(vectors))
    assert normaliser.width == 5


def test_moments() -> None:
    vectors, weights = data()
    assert torch.equal(Normaliser.fit("none", vectors, weights)(vectors), vectors)
    centred = Normaliser.fit("centre", vectors, weights)(vectors)
    torch.testing.assert_close(centred.mean(0), torch.zeros(5), atol=1e-4, rtol=0)
    assert centred.var(0, correction=0).mean().item() == pytest.approx(1, abs=1e-3)
    ratio = centred / (vectors - vectors.mean(0))
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio), atol=1e-2, rtol=1e-2)
    standard = Normaliser.fit("standardise", vectors, weights)(vectors)
    torch.testing.assert_close(standard.std(0, correction=0), torch.ones(5), atol=1e-3, rtol=0)
    white = Normaliser.fit("whiten", vectors, weights, 3)(vectors)
    torch.testing.assert_close(white.T @ white / 400, torch.eye(3), atol=1e-3, rtol=0)


def test_whitening_keeps_the_largest_components() -> None:
    vectors = torch.randn(500, 3, generator=torch.Generator().manual_seed(1)) * torch.tensor([10.0, 1.0, 0.1])
    normaliser = Normaliser.fit("whiten", vectors, torch.ones(500), 2)
    error = (normaliser.invert(normaliser(vectors)) - vectors).square().mean(0)
    assert error[0] < 1e-3
    assert error[2] == pytest.approx(0.01, rel=0.2)


def test_weights_move_the_mean() -> None:
    vectors = torch.tensor([[0.0], [4.0]])
    assert Normaliser.fit("centre", vectors, torch.tensor([3.0, 1.0])).mean.item() == pytest.approx(1)


@pytest.mark.parametrize("kind", ["centre", "standardise", "whiten"])
def test_constant_columns_do_no_harm(kind: Normalisation) -> None:
    vectors = torch.cat(
        [torch.randn(50, 2, generator=torch.Generator().manual_seed(0)), torch.ones(50, 1)], 1
    )
    assert torch.isfinite(Normaliser.fit(kind, vectors, torch.ones(50))(vectors)).all()


@pytest.mark.parametrize("kind", ["centre", "standardise", "whiten"])
def test_pieces_give_the_moments_of_the_whole(kind: Normalisation, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, _ = data()
    weights = torch.rand(400, generator=torch.Generator().manual_seed(1))
    whole = Normaliser.fit(kind, vectors, weights)
    monkeypatch.setattr("catalex.tokenizers.normalise.PIECE", 37)
    pieces = Normaliser.fit(kind, vectors, weights)
    for one, other in zip(whole.arrays().values(), pieces.arrays().values(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
    x, share = vectors.double(), (weights.double() / weights.double().sum())[:, None]
    mean = (x * share).sum(0)
    np.testing.assert_allclose(pieces.mean, mean.float(), rtol=1e-6)
    if kind == "standardise":
        expected = ((x - mean).square() * share).sum(0).rsqrt()
        np.testing.assert_allclose(pieces.forward, expected.float(), rtol=1e-6)
