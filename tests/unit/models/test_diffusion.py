"""Diffusion loss: schedule, bound and sampler against independent computations; a density really learned."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor, nn

from catalex.models import diffusion
from catalex.models.diffusion import Denoiser, DiffusionLoss, sinusoid, variational_bound
from catalex.models.diffusion_schedule import DiffusionSchedule, coefficients

MEAN = torch.tensor([1.5, -0.5])
COVARIANCE = torch.tensor([[0.6, 0.3], [0.3, 0.4]])


# --- schedule -----------------------------------------------------------------------------------------------


def test_schedule_values() -> None:
    abar = DiffusionSchedule.cosine().abar
    assert abar[0] == pytest.approx(0.99996, abs=5e-6)
    assert abar[499] == pytest.approx(0.4938, abs=5e-5)
    assert abar[999] == pytest.approx(2.4e-9, rel=0.02)


def test_schedule_follows_the_cosine_until_the_last_beta_is_cut() -> None:
    schedule = DiffusionSchedule.cosine()
    s = np.arange(1001) / 1000
    curve = np.cos((s + 0.008) / 1.008 * np.pi / 2) ** 2
    assert np.allclose(schedule.abar[:999], (curve / curve[0])[1:1000], rtol=1e-9)
    assert schedule.betas.max() == schedule.betas[999] == 0.999
    assert (np.diff(schedule.abar) < 0).all()


@pytest.mark.parametrize("steps", [1, 2, 10, 100, 1000])
def test_respaced_schedule_keeps_the_signal_of_its_steps(steps: int) -> None:
    full = DiffusionSchedule.cosine()
    short = full.respaced(steps)
    assert len(short.steps) == len(set(short.steps.tolist())) == steps
    assert short.steps[-1] == 999
    assert steps == 1 or short.steps[0] == 0
    assert np.allclose(short.abar, full.abar[short.steps], rtol=1e-9)
    assert np.isfinite(short.columns).all()
    assert steps < 1000 or np.allclose(short.columns, full.columns)


@pytest.mark.parametrize("steps", [0, 1001])
def test_a_number_of_steps_out_of_range_is_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=rf"must lie in 1\.\.1000, found {steps}"):
        DiffusionSchedule.cosine().respaced(steps)


def test_posterior_is_bayes_rule() -> None:
    """Mean and variance of q(x_{t-1} | x_t, x_0) by multiplying the two Gaussian densities on a grid."""
    schedule = DiffusionSchedule.cosine()
    x0, xt, grid = 0.7, -0.2, np.linspace(-6, 6, 200_001)
    for t in (300, 700, 990):
        beta, before = schedule.betas[t], schedule.abar[t - 1]
        density = stats.norm.pdf(grid, np.sqrt(before) * x0, np.sqrt(1 - before))
        density *= stats.norm.pdf(xt, np.sqrt(1 - beta) * grid, np.sqrt(beta))
        density /= integrate.trapezoid(density, grid)
        mean = integrate.trapezoid(density * grid, grid)
        variance = integrate.trapezoid(density * (grid - mean) ** 2, grid)
        *_, from_start, from_now, low, high = schedule.columns[t]
        assert from_start * x0 + from_now * xt == pytest.approx(mean, abs=1e-6)
        assert math.exp(low) == pytest.approx(variance, rel=1e-5)
        assert math.exp(high) == pytest.approx(beta)


# --- variational bound --------------------------------------------------------------------------------------


def bound_by_hand(x: float, noisy: float, eps: float, v: float, t: int) -> float:
    """L_vb of one channel in bits, from the textbook formulas in float64 and by numerical integration."""
    s = np.arange(1001) / 1000
    curve = np.cos((s + 0.008) / 1.008 * np.pi / 2) ** 2
    betas = np.minimum(1 - curve[1:] / curve[:-1], 0.999)
    abar = np.cumprod(1 - betas)
    before = abar[t - 1] if t else 1.0
    variances = [betas[i] * (1 - abar[i - 1]) / (1 - abar[i]) for i in (max(t, 1), 1)]
    log_variance = (v + 1) / 2 * np.log(betas[t]) + (1 - v) / 2 * np.log(variances[0])
    # the model's mean by way of the x_0 that its noise implies
    guess = (noisy - np.sqrt(1 - abar[t]) * eps) / np.sqrt(abar[t])
    own = (betas[t] * np.sqrt(before) * guess + np.sqrt(1 - betas[t]) * (1 - before) * noisy) / (1 - abar[t])
    model = stats.norm(own, np.exp(log_variance / 2))
    if t == 0:
        return float(-np.log2(max(model.cdf(x + 1 / 255) - model.cdf(x - 1 / 255), 1e-12)))
    right = (betas[t] * np.sqrt(before) * x + np.sqrt(1 - betas[t]) * (1 - before) * noisy) / (1 - abar[t])
    true = stats.norm(right, np.sqrt(variances[0]))
    spread = true.std()
    grid = np.linspace(right - 12 * spread, right + 12 * spread, 20_001)
    weight = true.pdf(grid)
    return float(integrate.trapezoid(weight * (true.logpdf(grid) - model.logpdf(grid)), grid) / np.log(2))


def test_bound_equals_an_independent_divergence() -> None:
    generator = np.random.default_rng(0)
    schedule = DiffusionSchedule.cosine()
    t = torch.tensor([0, 0, 1, 2, 10, 100, 500, 900, 998])
    x, true_eps, eps = (generator.standard_normal((len(t), 2)) for _ in range(3))
    eps = true_eps + 0.1 * eps
    v = generator.uniform(-1, 1, (len(t), 2))
    abar = schedule.abar[t.numpy()][:, None]
    noisy = np.sqrt(abar) * x + np.sqrt(1 - abar) * true_eps
    expected = [
        np.mean([bound_by_hand(x[i, c], noisy[i, c], eps[i, c], v[i, c], int(t[i])) for c in range(2)])
        for i in range(len(t))
    ]
    args = (torch.tensor(part, dtype=torch.float32) for part in (x, noisy, eps, v))
    found = variational_bound(*args, t, coefficients(schedule.table(torch.device("cpu")), t))
    assert np.allclose(found.numpy(), expected, rtol=2e-3, atol=1e-4)


def test_bound_is_zero_for_the_true_step() -> None:
    schedule = DiffusionSchedule.cosine()
    t = torch.tensor([1, 50, 500, 999])
    c = coefficients(schedule.table(torch.device("cpu")), t)
    x, eps = torch.randn(4, 3), torch.randn(4, 3)
    bound = variational_bound(x, c.signal * x + c.noise * eps, eps, -torch.ones(4, 3), t, c)
    assert torch.allclose(bound, torch.zeros(4), atol=1e-3)


# --- loss ---------------------------------------------------------------------------------------------------


def small(**settings: int | bool) -> DiffusionLoss:
    torch.manual_seed(0)
    return DiffusionLoss(4, 6, **{"width": 32, "blocks": 2, **settings})  # type: ignore[arg-type]


def stir(module: nn.Module) -> None:
    """Leave the initial state, in which gates and outputs are zero and little can go wrong."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn_like(p))


def pairs(rows: int = 50) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(2)
    return torch.randn(rows, 4), torch.randn(rows, 6), torch.ones(rows)


def test_fresh_network_predicts_no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = small()
    assert not loss.denoiser(torch.randn(9, 4), torch.arange(9), torch.randn(9, 32)).any()
    monkeypatch.setattr(diffusion, "variational_bound", lambda x, *_: torch.zeros(len(x)))
    found = loss(*pairs(20_000), torch.Generator().manual_seed(0))
    assert found.count.item() == 20_000
    assert found.mean().item() == pytest.approx(1, abs=0.01)  # E eps^2


def test_the_bound_trains_the_variance_only() -> None:
    loss = small(blocks=0)
    x, z, one = pairs()
    torch.manual_seed(5)
    loss(x, z, one).total.backward()
    noise_part = loss.denoiser.leave.bias.grad[:4].clone()
    torch.manual_seed(5)
    loss.zero_grad()
    t = torch.randint(1000, (200,))
    eps = torch.randn(200, 4)
    c = coefficients(loss.schedule.table(x.device), t)
    x, condition = x.repeat(4, 1), loss.denoiser.condition(z).repeat(4, 1)
    guess = loss.denoiser(c.signal * x + c.noise * eps, t, condition)[:, :4]
    ((guess - eps).square().mean(1).sum() / 4).backward()
    assert torch.allclose(noise_part, loss.denoiser.leave.bias.grad[:4], atol=1e-4)


def test_a_seed_fixes_the_loss_and_a_generator_replaces_the_default_one() -> None:
    loss, (x, z, one) = small(), pairs()
    stir(loss)

    def value(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return loss(x, z, one).total

    assert value(1) == value(1) != value(2)
    state = torch.get_rng_state()
    given = [loss(x, z, one, torch.Generator().manual_seed(1)).total for _ in range(2)]
    assert given[0] == given[1]
    assert torch.equal(state, torch.get_rng_state())


def test_weights_choose_the_tokens() -> None:
    loss, (x, z, _) = small(), pairs()
    stir(loss)
    weight = (torch.arange(50) % 3 > 0).float() * 2
    full = [
        loss(x, z, torch.eye(50)[i], torch.Generator().manual_seed(1)).total.item() for i in range(50)
    ]  # one token at a time, each under the same noise
    broken = torch.where(weight[:, None] > 0, x, math.nan)
    found = loss(broken, z, weight, torch.Generator().manual_seed(1))
    assert found.total.item() == pytest.approx(float(np.dot(full, weight.numpy())), rel=1e-4)
    assert found.count.item() == weight.sum().item()


def test_no_weight_gives_zero_and_finite_zero_gradients() -> None:
    loss, (x, z, one) = small(), pairs()
    stir(loss)
    z.requires_grad_()
    found = loss(torch.full_like(x, math.nan), z, 0 * one)
    found.mean().backward()
    assert found.total.item() == found.count.item() == 0
    assert not z.grad.any()
    assert all(p.grad is not None and not p.grad.any() for p in loss.parameters())


def test_recomputing_changes_neither_value_nor_gradient() -> None:
    x, z, one = pairs()
    found = []
    for recompute in (False, True):
        loss = small(recompute=recompute)
        stir(loss)
        torch.manual_seed(3)
        total = loss(x, z, one).total
        found.append((total, *torch.autograd.grad(total, list(loss.parameters()))))
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(*found, strict=True))


def test_embedding_every_step_once_changes_nothing() -> None:
    """More rows than steps take another path; each row must come out as it does alone."""
    loss = small()
    stir(loss)
    x, t, condition = torch.randn(1500, 4), torch.randint(1000, (1500,)), torch.randn(1500, 32)
    alone = torch.cat(
        [loss.denoiser(x[i : i + 500], t[i : i + 500], condition[i : i + 500]) for i in (0, 500, 1000)]
    )
    assert torch.allclose(loss.denoiser(x, t, condition), alone, atol=1e-5)


def test_sinusoid_tells_steps_apart() -> None:
    e = sinusoid(torch.arange(1000))
    assert e.shape == (1000, 256)
    assert torch.equal(e[0], torch.cat([torch.ones(128), torch.zeros(128)]))
    assert (torch.cdist(e, e) + 10 * torch.eye(1000)).min() > 0.05


def test_bfloat16_keeps_loss_and_schedule_in_float32() -> None:
    x, z, one = pairs(2000)
    loss = small()
    stir(loss)
    exact = loss(x, z, one, torch.Generator().manual_seed(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = loss(x, z, one, torch.Generator().manual_seed(1))
    cast = loss.bfloat16()(x, z.bfloat16(), one, torch.Generator().manual_seed(1))
    for other in (rough, cast):
        assert other.total.dtype == other.count.dtype == torch.float32
        assert other.total.item() == pytest.approx(exact.total.item(), rel=0.02)


# --- sampling -----------------------------------------------------------------------------------------------


class BestDenoiser(Denoiser):
    """The best possible prediction for the Gaussian N(MEAN, COVARIANCE), in closed form."""

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        abar = float(DiffusionSchedule.cosine().abar[int(t)])
        spread = abar * COVARIANCE + (1 - abar) * torch.eye(2)
        eps = math.sqrt(1 - abar) * (x - math.sqrt(abar) * MEAN) @ torch.linalg.inv(spread)
        return torch.cat([eps, torch.zeros_like(eps)], dim=1)


@pytest.mark.parametrize(("steps", "slack"), [(100, 0.03), (1000, 0.02)])
def test_sampler_reproduces_a_gaussian_from_its_exact_denoiser(steps: int, slack: float) -> None:
    loss = DiffusionLoss(2, 3, width=8)
    loss.denoiser = BestDenoiser(2, 3, 8, 0)
    x = loss.sample(torch.zeros(20_000, 3), steps=steps, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(x.mean(0), MEAN, atol=slack)
    assert torch.allclose(torch.cov(x.T), COVARIANCE, atol=slack)


def test_without_noise_samples_are_sharper() -> None:
    loss = DiffusionLoss(2, 3, width=8)
    loss.denoiser = BestDenoiser(2, 3, 8, 0)
    z = torch.zeros(2000, 3)
    cold, warm = (
        loss.sample(z, temperature=k, generator=torch.Generator().manual_seed(0)).std(0) for k in (0.0, 1.0)
    )
    assert (cold < 0.9 * warm).all()


def test_samples_stay_within_the_limit() -> None:
    loss = DiffusionLoss(2, 3, width=8)
    loss.denoiser = BestDenoiser(2, 3, 8, 0)
    assert loss.sample(torch.zeros(500, 3), limit=0.5).abs().max() <= 0.5


@pytest.mark.slow
def test_trained_loss_reproduces_a_known_density() -> None:
    """Two conditions, two correlated Gaussians with different centres; learned from samples, sampled back."""
    torch.manual_seed(0)
    means = torch.stack([MEAN, -MEAN])
    roots = torch.linalg.cholesky(
        torch.stack([COVARIANCE, COVARIANCE.flip(0, 1) * torch.tensor([[1, -1], [-1, 1]])])
    )
    loss = DiffusionLoss(2, 2, width=64, blocks=2)
    average = torch.optim.swa_utils.AveragedModel(
        loss, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995)
    )
    steps = 2000
    optimizer = torch.optim.AdamW(loss.parameters(), lr=2e-3, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        kind = torch.randint(2, (256,))
        x = means[kind] + (roots[kind] @ torch.randn(256, 2, 1))[..., 0]
        loss(x, torch.eye(2)[kind], torch.ones(256)).mean().backward()
        nn.utils.clip_grad_norm_(loss.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        average.update_parameters(loss)
    for kind in range(2):
        z = torch.eye(2)[kind].expand(20_000, 2)
        x = average.module.sample(z, generator=torch.Generator().manual_seed(kind))
        assert torch.allclose(x.mean(0), means[kind], atol=0.05)
        assert torch.allclose(torch.cov(x.T), roots[kind] @ roots[kind].T, atol=0.05)
