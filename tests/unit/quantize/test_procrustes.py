"""Rotation onto codebooks, refinement, balanced assignment."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from catalex.quantize.balanced import balanced_penalty, nearest_but
from catalex.quantize.distances import nearest
from catalex.quantize.procrustes import Motion, lloyd, procrustes, refine, rotate_onto


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def turn(width: int, seed: int = 1) -> Tensor:
    """A random orthogonal matrix."""
    rotation: Tensor = torch.linalg.qr(gaussian(width, width, seed=seed)).Q
    return rotation


def test_a_known_rotation_is_found() -> None:
    vectors, rotation = gaussian(50, 6), turn(6)
    torch.testing.assert_close(procrustes(vectors, vectors @ rotation).float(), rotation, atol=1e-5, rtol=0)


def test_no_small_turn_does_better_than_procrustes() -> None:
    vectors, wanted = gaussian(40, 5).double(), gaussian(40, 5, seed=2).double()
    best = procrustes(vectors, wanted)
    error = (vectors @ best - wanted).square().sum()
    for seed in range(20):
        skew = gaussian(5, 5, seed=seed).double()
        turned = best @ torch.linalg.matrix_exp(0.05 * (skew - skew.T))
        assert (vectors @ turned - wanted).square().sum() > error
    torch.testing.assert_close(best @ best.T, torch.eye(5, dtype=torch.float64))


def test_directions_that_no_vector_has_stay() -> None:
    vectors, wanted = torch.zeros(3, 4), torch.zeros(3, 4)
    vectors[:, 0] = wanted[:, 1] = torch.tensor([1.0, 2.0, 3.0])
    rotation = procrustes(vectors, wanted, stay=1e-6)
    torch.testing.assert_close(rotation[2:, 2:], torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(rotation[0, 1], torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(procrustes(vectors * 0, wanted, stay=1e-6), torch.eye(4, dtype=torch.float64))


def test_a_motion_is_undone() -> None:
    motion, vectors = Motion(gaussian(6), turn(6), gaussian(6, seed=3)), gaussian(9, 6, seed=4)
    torch.testing.assert_close(motion.invert(motion(vectors)), vectors, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.cdist(motion(vectors), motion(vectors)), torch.cdist(vectors, vectors))


@pytest.mark.parametrize("balance", [0.0, 1.0])
def test_vectors_that_were_slightly_turned_come_back(balance: float) -> None:
    codebook = 3 * gaussian(8, 4)
    truth = torch.arange(8).repeat(20)
    vectors = codebook[truth] + 0.1 * gaussian(160, 4, seed=5)
    skew = gaussian(4, 4, seed=6)
    moved = vectors @ torch.linalg.matrix_exp(0.15 * (skew - skew.T)) + 5
    start = Motion(moved.mean(0), torch.eye(4), codebook.mean(0))
    found = rotate_onto(moved, [codebook], start, rounds=30, balance=balance)
    assert torch.equal(nearest(found.motion(moved), codebook), truth)
    assert min(found.errors) < 0.1 * found.errors[0]


def test_no_round_returns_the_start() -> None:
    start = Motion(torch.zeros(4), torch.eye(4), torch.ones(4))
    assert rotate_onto(gaussian(9, 4), [gaussian(3, 4)], start, rounds=0).motion is start


def slow_lloyd(vectors: Tensor, codebook: Tensor, iterations: int) -> Tensor:
    codebook = codebook.clone()
    for _ in range(iterations):
        chosen = torch.cdist(vectors, codebook).argmin(1)
        for code in range(len(codebook)):
            if (chosen == code).any():
                codebook[code] = vectors[chosen == code].mean(0)
    return codebook


def test_lloyd_against_a_loop_and_unused_codes_stay() -> None:
    vectors, codebook = gaussian(100, 3), gaussian(6, 3, seed=1)
    codebook[4] = 100.0
    found = lloyd(vectors, codebook, 5)
    torch.testing.assert_close(found, slow_lloyd(vectors, codebook, 5), atol=1e-5, rtol=1e-5)
    assert torch.equal(found[4], codebook[4])
    assert lloyd(vectors, codebook, 0) is codebook


def test_refining_lowers_the_error_level_by_level() -> None:
    vectors, codebooks = gaussian(200, 4), [gaussian(5, 4, seed=1), 0.5 * gaussian(5, 4, seed=2)]
    error = []
    for books in (codebooks, refine(vectors, codebooks, 10)):
        rest = vectors
        for book in books:
            rest = rest - book[nearest(rest, book)]
        error.append(float(rest.square().mean()))
    assert error[1] < 0.8 * error[0]


def test_a_penalty_balances_crowded_codes() -> None:
    vectors, codebook = gaussian(400, 4) + 3, 3 * gaussian(10, 4, seed=1)
    crowded = torch.bincount(nearest(vectors, codebook), minlength=10)
    penalty = balanced_penalty(vectors, codebook, iterations=200)
    spread = torch.bincount(nearest_but(vectors, codebook, penalty), minlength=10)
    assert crowded.max() > 120
    assert spread.max() < 60
    assert spread.min() > 20
    assert (penalty >= 0).all()


def test_balanced_codes_need_no_penalty() -> None:
    codebook = 10 * torch.eye(4)
    vectors = codebook.repeat(5, 1)
    torch.testing.assert_close(balanced_penalty(vectors, codebook), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(balanced_penalty(gaussian(1, 4), codebook), torch.zeros(4), atol=1e-3, rtol=0)
    assert torch.equal(nearest_but(vectors, codebook, torch.zeros(4)), nearest(vectors, codebook))
    assert nearest_but(vectors[:0], codebook, torch.zeros(4)).shape == (0,)
