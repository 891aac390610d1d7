"""Residual quantization against a loop over items and levels."""

from __future__ import annotations

import numpy as np
import torch

from catalex.quantize import cumulative, kmeans, reconstruct, residual, residual_distances, residual_encode


def case() -> tuple[torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(60, 6, generator=generator), [
        torch.randn(k, 6, generator=generator) for k in (5, 9, 4)
    ]


def test_codes_equal_a_slow_loop() -> None:
    vectors, codebooks = case()
    codes = residual_encode(vectors, codebooks)
    for row, vector in enumerate(vectors.double().numpy()):
        rest = vector
        for level, codebook in enumerate(codebooks):
            best = int(((rest - codebook.double().numpy()) ** 2).sum(1).argmin())
            assert codes[row, level] == best
            rest = rest - codebook.double().numpy()[best]


def test_reconstruction_is_the_sum_of_the_levels_and_residual_the_remainder() -> None:
    vectors, codebooks = case()
    codes = residual_encode(vectors, codebooks)
    parts = [codebook[codes[:, level]] for level, codebook in enumerate(codebooks)]
    torch.testing.assert_close(reconstruct(codes, codebooks), parts[0] + parts[1] + parts[2])
    torch.testing.assert_close(cumulative(codes, codebooks)[:, 1], parts[0] + parts[1])
    torch.testing.assert_close(residual(vectors, codes, codebooks) + reconstruct(codes, codebooks), vectors)


def test_distances_given_a_prefix_are_those_of_its_residual() -> None:
    vectors, codebooks = case()
    prefix = torch.tensor([[1, 3]] * len(vectors))
    rest = vectors - codebooks[0][1] - codebooks[1][3]
    brute = (rest[:, None] - codebooks[2][None]).square().sum(2)
    torch.testing.assert_close(residual_distances(vectors, prefix, codebooks), brute, atol=1e-4, rtol=1e-4)


def test_error_never_increases_with_levels_after_k_means() -> None:
    rest = torch.randn(300, 6, generator=torch.Generator().manual_seed(2))
    codebooks, errors = [], [float(rest.square().sum())]
    for level in range(4):
        codebooks.append(kmeans(rest, 8, seed=level).centroids)
        rest = residual(rest, residual_encode(rest, codebooks[-1:]), codebooks[-1:])
        errors.append(float(rest.square().sum()))
    assert np.all(np.diff(errors) < 0)
