"""HSIC and CKA: worked values, properties, and two independent computations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from catalex.quantize.dependence import FEWEST, cka, domain_information, gram, hsic, median_distance


def column(*values: float) -> Tensor:
    return torch.tensor(values)[:, None]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- worked values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "z", "expected"),
    [
        ((0, 1, 2), (0, 1, 2), 0.20088),
        ((0, 1, 2), (0, 5, 1), 0.15609),
        ((0, 1, 2), (3, 3, 3), 0.0),
        ((0, 1, 2, 3), (0, 1, 2, 3), 0.21091),
    ],
)
def test_worked_values_of_hsic(x: tuple[float, ...], z: tuple[float, ...], expected: float) -> None:
    assert float(hsic(column(*x), column(*z), 1, 1)) == pytest.approx(expected, abs=6e-6)


def test_worked_values_of_cka() -> None:
    x = column(0, 1, 2)
    assert float(cka(x, x, 1, 1)) == pytest.approx(1, abs=1e-6)
    assert float(cka(x, column(0, 5, 1), 1, 1)) == pytest.approx(0.55074, abs=6e-6)
    assert float(cka(x, column(3, 3, 3), 1, 1)) == 0


def test_a_fixed_bandwidth_sees_nothing_in_wide_vectors_and_the_median_does() -> None:
    x = normal(64, 768)
    shuffled = x[torch.randperm(64, generator=torch.Generator().manual_seed(1))]
    assert float(hsic(x, x, 1, 1)) == pytest.approx(1 / 63, rel=1e-5)
    assert float(hsic(x, shuffled, 1, 1)) == pytest.approx(1 / 63, rel=1e-5)
    assert float(hsic(x, shuffled)) < 0.99 * float(hsic(x, x))


# --- independent computations -------------------------------------------------------------------------------


def hsic_by_sums(u: np.ndarray, v: np.ndarray) -> float:
    """The definition E[k l] + E[k] E[l] - 2 E[E[k | i] E[l | i]] over all pairs, triples and quadruples."""
    n = len(u)
    rows = range(n)
    pairs = sum(u[i, j] * v[i, j] for i in rows for j in rows) / n**2
    quadruples = sum(u[i, j] * v[k, m] for i, j, k, m in itertools.product(rows, repeat=4)) / n**4
    triples = sum(u[i, j] * v[i, k] for i, j, k in itertools.product(rows, repeat=3)) / n**3
    return float(pairs + quadruples - 2 * triples) * n**2 / (n - 1) ** 2


def kernel_by_loops(x: Tensor, bandwidth: float) -> np.ndarray:
    rows = x.tolist()
    return np.array([[math.exp(-(math.dist(a, b) ** 2) / (2 * bandwidth**2)) for b in rows] for a in rows])


@pytest.mark.parametrize("seed", range(4))
def test_hsic_is_the_sum_over_pairs_triples_and_quadruples(seed: int) -> None:
    x, z = normal(7, 3, seed=seed, dtype=torch.float64), normal(7, 2, seed=seed + 9, dtype=torch.float64)
    expected = hsic_by_sums(kernel_by_loops(x, 0.8), kernel_by_loops(z, 1.7))
    assert float(hsic(x, z, 0.8, 1.7)) == pytest.approx(expected, rel=1e-10)
    assert float(hsic(x.float(), z.float(), 0.8, 1.7)) == pytest.approx(expected, rel=1e-4)


def test_hsic_agrees_with_scikit_learn() -> None:
    pairwise = pytest.importorskip("sklearn.metrics.pairwise")
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    x = normal(40, 20)
    z = torch.tanh(x[:, :4]) + 0.1 * normal(40, 4, seed=1)

    def centred(rows: Tensor) -> np.ndarray:
        values = rows.double().numpy()
        distances = pairwise.euclidean_distances(values)[np.triu_indices(40, 1)]
        middle = np.sort(distances)[(len(distances) - 1) // 2]
        kernel = pairwise.rbf_kernel(values, gamma=1 / (2 * middle**2))
        return np.asarray(preprocessing.KernelCenterer().fit_transform(kernel))

    u, v = centred(x), centred(z)
    assert float(hsic(x.double(), z.double())) == pytest.approx((u * v).sum() / 39**2, rel=1e-10)
    expected = (u * v).sum() / math.sqrt((u * u).sum() * (v * v).sum())
    assert float(cka(x, z)) == pytest.approx(expected, rel=1e-5)


def test_the_median_is_that_of_the_pairs_of_different_rows() -> None:
    x = normal(9, 3, dtype=torch.float64)
    distances = sorted(math.dist(a, b) for a, b in itertools.combinations(x.tolist(), 2))
    assert float(median_distance(x)) == pytest.approx(distances[(len(distances) - 1) // 2])


# --- properties ---------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 20),
    st.integers(1, 6),
    st.integers(0, 1000),
    st.sampled_from([1e-6, 1.0, 1e6]),
    st.sampled_from([None, 0.3]),
)
def test_properties(n: int, width: int, seed: int, scale: float, bandwidth: float | None) -> None:
    x, z = normal(n, width, seed=seed) * scale, normal(n, 2, seed=seed + 1)
    value, normalised = float(hsic(x, z, None, bandwidth)), float(cka(x, z, None, bandwidth))
    assert value >= 0
    assert 0 <= normalised <= 1 + 1e-5
    assert float(hsic(z, x, bandwidth, None)) == pytest.approx(value, rel=1e-4, abs=1e-7)
    rows = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert float(hsic(x[rows], z[rows], None, bandwidth)) == pytest.approx(value, rel=1e-3, abs=1e-6)
    assert float(cka(x, x)) == pytest.approx(1, abs=1e-4)


def test_the_bandwidth_follows_the_scale() -> None:
    x, z = normal(30, 5), normal(30, 3, seed=1)
    assert float(hsic(1000 * x + 7, z)) == pytest.approx(float(hsic(x, z)), rel=1e-4)
    assert float(hsic(1000 * x + 7, z, 1)) != pytest.approx(float(hsic(x, z, 1)), rel=0.1)


def test_shuffling_one_side_loses_dependence() -> None:
    x = normal(100, 2)
    z = x.square()  # uncorrelated, yet dependent
    shuffled = z[torch.randperm(100, generator=torch.Generator().manual_seed(3))]
    assert float(hsic(x, z)) > 3 * float(hsic(x, shuffled))


@pytest.mark.parametrize("measure", [hsic, cka])
def test_a_stack_of_domains_equals_one_after_the_other(measure: object) -> None:
    assert callable(measure)
    x, z = normal(2, 3, 12, 5) * torch.tensor([1.0, 10.0, 100.0])[:, None, None], normal(2, 3, 12, 2, seed=1)
    found = measure(x, z)
    assert found.shape == (2, 3)
    single = [[float(measure(x[i, j], z[i, j])) for j in range(3)] for i in range(2)]
    torch.testing.assert_close(found, torch.tensor(single))
    widths = torch.tensor([0.5, 1.0, 2.0])
    assert float(measure(x, z, widths, 1)[1, 2]) == pytest.approx(float(measure(x[1, 2], z[1, 2], 2, 1)))


# --- degenerate input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, 0.1, 1e4, 1e-30])
def test_equal_rows_know_nothing(value: float) -> None:
    """0.1 has no exact float: the rows must still be found equal."""
    same = torch.full((6, 37), value, requires_grad=True)
    other = normal(6, 2).requires_grad_()
    assert float(median_distance(same)) == 1
    for found in (hsic(same, other), cka(same, other), cka(same, same)):
        assert found.item() == 0
        gradients = torch.autograd.grad(found, (same, other), allow_unused=True, retain_graph=True)
        assert all(g is None or bool(torch.isfinite(g).all()) for g in gradients)


def test_mostly_equal_rows_get_the_mean_distance() -> None:
    x = torch.zeros(10, 2)
    x[0, 0] = 5
    assert float(median_distance(x)) == pytest.approx(5 * 9 / 45)
    assert float(hsic(x, x)) > 0
    vectors = normal(1, 300).expand(10, -1).clone()
    vectors[0] += 1
    assert float(median_distance(vectors)) == pytest.approx(math.sqrt(300) * 9 / 45, rel=1e-4)


def test_two_rows_are_enough_and_one_is_not() -> None:
    assert float(hsic(normal(2, 3), normal(2, 3, seed=1))) > 0
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        hsic(normal(1, 3), normal(1, 3))
    with pytest.raises(ValueError, match="equally many rows, got 3 and 4"):
        cka(normal(3, 3), normal(4, 3))
    with pytest.raises(ValueError, match="positive, not 0"):
        gram(normal(3, 3), 0)


def test_half_precision_is_computed_in_float32() -> None:
    x, z = normal(16, 4).half(), normal(16, 2, seed=1)
    assert hsic(x, z).dtype == torch.float32
    assert hsic(x.double(), z.double()).dtype == torch.float64
    expected = float(hsic(x.float(), z))
    with torch.autocast("cpu", torch.bfloat16):
        assert float(hsic(x, z)) == expected


# --- gradients ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", [hsic, cka])
@pytest.mark.parametrize("bandwidth", [None, 0.9])
def test_gradients(measure: object, bandwidth: float | None) -> None:
    """With the median the bandwidth counts as a constant, so it is measured once and held."""
    assert callable(measure)
    x = normal(2, 6, 3, dtype=torch.float64).requires_grad_()
    z = normal(2, 6, 2, seed=1, dtype=torch.float64).requires_grad_()
    held = (median_distance(x), median_distance(z)) if bandwidth is None else (bandwidth, bandwidth)
    assert torch.autograd.gradcheck(lambda a, b: measure(a, b, *held), (x, z))
    free = torch.autograd.grad(measure(x, z, *([None] * 2 if bandwidth is None else held)).sum(), (x, z))
    fixed = torch.autograd.grad(measure(x, z, *held).sum(), (x, z))
    torch.testing.assert_close(free, fixed)


def test_coinciding_rows_have_finite_gradients() -> None:
    x = normal(8, 4)
    z = normal(8, 3, seed=1)
    z[1] = z[0]
    z.requires_grad_()
    hsic(x, z).backward()
    assert z.grad is not None
    assert bool(torch.isfinite(z.grad).all())
    assert float(z.grad.abs().sum()) > 0


def test_following_the_gradient_raises_the_dependence() -> None:
    x = normal(4, 32, 6)
    z = (0.5 * normal(4, 32, 3, seed=1)).requires_grad_()
    before = hsic(x, z).mean()
    optimizer = torch.optim.Adam([z], lr=0.05)
    for _ in range(30):
        optimizer.zero_grad()
        (-hsic(x, z).mean()).backward()
        optimizer.step()
    assert hsic(x, z).mean().item() > 1.3 * before.item()


# --- the measure of a domain --------------------------------------------------------------------------------


def test_information_of_a_small_domain_is_that_of_all_items() -> None:
    x, z = normal(50, 4), normal(50, 2, seed=1)
    assert domain_information(x, z) == pytest.approx(float(hsic(x, z)))
    assert domain_information(x, z, normalised=True) == pytest.approx(float(cka(x, z)))
    assert domain_information(x[: FEWEST - 1], z[: FEWEST - 1]) is None
    assert domain_information(x, z, size=FEWEST - 1) is None
    assert domain_information(x[:0], z[:0]) is None
    with pytest.raises(ValueError, match="got 49 for 50 items"):
        domain_information(x, z[1:])


def test_information_of_a_large_domain_is_fixed_by_its_seed() -> None:
    x = normal(300, 4)
    z = x[:, :2]
    one = domain_information(x, z, size=40, seed=1)
    assert one == domain_information(x, z, size=40, seed=1)
    other = domain_information(x, z, size=40, seed=2)
    assert one is not None
    assert other is not None
    assert one != other
    assert other == pytest.approx(one, rel=0.3)
    assert domain_information(x, z.flip(0), size=40, seed=1) != pytest.approx(one, rel=0.3)


def test_the_mean_is_over_the_draws() -> None:
    x, z = normal(60, 4), normal(60, 2, seed=1)
    generator = torch.Generator().manual_seed(5)
    rows = [torch.randperm(60, generator=generator)[:20] for _ in range(3)]
    expected = np.mean([float(hsic(x[r], z[r])) for r in rows])
    assert domain_information(x, z, seed=5, size=20, draws=3) == pytest.approx(expected)
