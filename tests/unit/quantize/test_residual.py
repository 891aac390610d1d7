"""Residual quantization against a loop over items and levels."""

from __future__ import annotations

import numpy as np
import torch

from catalex.quantize import (
    cumulative,
    in_blocks,
    kmeans,
    reconstruct,
    residual,
    residual_distances,
    residual_encode,
    residual_encoder,
)


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


def test_an_encoder_for_many_blocks_leaves_them_alone_and_keeps_nothing_of_them() -> None:
    vectors, codebooks = case()
    before, encode = vectors.clone(), residual_encoder(codebooks)
    for rows in (slice(0, 20), slice(20, 40), slice(40, 45), slice(0, 60), slice(7, 8)):
        found = encode(vectors[rows])
        assert torch.equal(found, residual_encode(vectors[rows], codebooks))
        again = found.clone()
        encode(vectors.flip(0)[rows])
        assert torch.equal(found, again)
    assert torch.equal(vectors, before)


def test_codes_are_the_argmin_of_the_distances_bit_by_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    codebooks = [torch.randint(-2, 3, (64, 4), generator=generator).float() for _ in range(3)]
    vectors = torch.randint(-2, 3, (1000, 4), generator=generator).float()  # ties everywhere
    codes = in_blocks(residual_encoder(codebooks), vectors)
    for level in range(3):
        found = in_blocks(lambda v, c: residual_distances(v, c, codebooks), vectors, codes[:, :level])
        smallest = (found == found.min(1, keepdim=True).values).int().argmax(1)
        assert torch.equal(codes[:, level], smallest)


def test_distances_pass_gradients() -> None:
    vectors, codebooks = case()
    vectors, codebook = vectors.double().float().requires_grad_(), codebooks[1].requires_grad_()
    residual_distances(vectors, torch.zeros(60, 0, dtype=torch.int64), [codebook]).sum().backward()
    expected = 2 * (vectors.detach()[:, None] - codebook.detach()).sum(1)
    torch.testing.assert_close(vectors.grad, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        codebook.grad, -2 * (vectors.detach()[:, None] - codebook.detach()).sum(0), atol=1e-4, rtol=1e-4
    )
