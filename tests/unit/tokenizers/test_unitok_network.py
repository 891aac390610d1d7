"""The network of UniTok against loops that follow the formulas of arXiv 2511.12922.

Numbers in docstrings are the invariants (section 6) and the defects of the official code (section 7) of the
specification that a test covers.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from catalex.quantize.dependence import cka, hsic
from catalex.quantize.experts import ExpertCodebooks
from catalex.tokenizers.unitok_network import Losses, UniTokNetwork, calibrate, discriminant
from catalex.tokenizers.unitok_options import UniTokOptions

WIDTH, LATENT, LEVELS, EXPERTS = 6, 4, 3, 4
COMBINATIONS = ["sum", "residual", "routed-first"]


def options(**changes: Any) -> UniTokOptions:
    """Small, and every setting that a formula depends on is written out."""
    values: dict[str, Any] = {
        "levels": LEVELS,
        "codebook_size": 5,
        "experts": None,
        "routed": 1,
        "shared": True,
        "hidden": (8,),
        "latent": LATENT,
        "combination": "sum",
        "renormalise": False,
        "router_input": "latent",
        "quantization": 1.0,
        "commitment": 0.25,
        "calibration": 0.03,
        "beta": 1.0,
        "normalised_information": False,
        "load_balancing": 0.0,
        "supervision": 0.0,
        "reduction": "sum",
    }
    return UniTokOptions(**{**values, **changes})


def network(seed: int = 0, **changes: Any) -> UniTokNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UniTokNetwork(WIDTH, EXPERTS, options(**changes)).eval()


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def routing(rows: int, seed: int = 3) -> Tensor:
    """Gates ``(B, K)`` as a router gives them."""
    return (2 * randn(rows, EXPERTS, seed=seed)).softmax(1)


# --- the slow version ---------------------------------------------------------------------------------------


class Slow(NamedTuple):
    vector: Tensor
    loss: Tensor
    experts: list[int]
    codes: list[int]
    shared: Tensor


def residual_quantized(tables: Tensor, target: Tensor, o: UniTokOptions) -> tuple[Tensor, list[int], Tensor]:
    """``E(z)``, codes and loss of one vector under codebooks ``(L, T, d)``, differentiable."""
    rest, total, loss, codes = target, torch.zeros_like(target), target.new_zeros(()), []
    for table in tables:
        errors = [float((rest - code).detach().square().sum()) for code in table]
        best = errors.index(min(errors))
        pull = (rest.detach() - table[best]).square()
        commit = (rest - table[best].detach()).square()
        loss = loss + (pull + o.commitment * commit).sum() / (LATENT if o.reduction == "mean" else 1)
        rest, total = rest - table[best], total + table[best]
        codes.append(best)
    return total, codes, loss


def slow_mix(net: UniTokNetwork, z: Tensor, gates: Tensor) -> Slow:
    """``z^`` of one latent ``(d,)`` with gates ``(K,)``, expert by expert and level by level."""
    o = net.options

    def through(total: Tensor, target: Tensor) -> Tensor:
        return target + (total - target).detach()

    kept = sorted(range(len(gates)), key=lambda e: (-float(gates[e].detach()), e))[: o.routed]
    weights = [gates[e] for e in kept]
    if o.renormalise:
        weights = [w / sum(weights) for w in weights]
    loss, shared, target = z.new_zeros(()), torch.zeros_like(z), z
    if net.shared is not None and o.combination == "residual":
        total, _, more = residual_quantized(net.shared.weight[0], z, o)
        shared, loss = through(total, z), loss + more
        target = z - shared.detach()
    mixture, names = torch.zeros_like(z), []
    for expert, weight in zip(kept, weights, strict=True):
        total, codes, more = residual_quantized(net.routed.weight[expert], target, o)
        mixture, loss = mixture + weight * through(total, target), loss + more
        names.append(codes)
    if net.shared is not None and o.combination != "residual":
        rest = z if o.combination == "sum" else z - mixture.detach()
        total, _, more = residual_quantized(net.shared.weight[0], rest, o)
        shared, loss = through(total, rest), loss + more
    return Slow(mixture + shared, loss, kept, names[0], shared)


def slow_information(x: np.ndarray, z: np.ndarray, normalised: bool) -> float:
    """``Tr(U H V H) / (n - 1)^2`` written out, float64, median distance as bandwidth."""
    n = len(x)
    centre = np.eye(n) - np.ones((n, n)) / n

    def kernel(rows: np.ndarray) -> np.ndarray:
        rows = rows.astype(np.float64)
        pairs = sorted(np.linalg.norm(rows[i] - rows[j]) for i in range(n) for j in range(i + 1, n))
        median = pairs[(len(pairs) - 1) // 2]
        return np.array([[math.exp(-((a - b) ** 2).sum() / (2 * median**2)) for b in rows] for a in rows])

    def dependence(u: np.ndarray, v: np.ndarray) -> float:
        return float(np.trace(u @ centre @ v @ centre)) / (n - 1) ** 2

    u, v = kernel(x), kernel(z)
    if not normalised:
        return dependence(u, v)
    return dependence(u, v) / math.sqrt(dependence(u, u) * dependence(v, v))


MIXTURES = [
    {"combination": combination, "routed": routed, "renormalise": renormalise}
    for combination in COMBINATIONS
    for routed in (1, 2)
    for renormalise in (False, True)
] + [{"shared": False, "routed": routed} for routed in (1, 2)]


@pytest.fixture(params=MIXTURES, ids=lambda m: "-".join(map(str, m.values())))
def mixture(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = request.param
    return found


# --- the mixture --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_mixture_is_that_of_the_formula(mixture: dict[str, Any], reduction: str) -> None:
    """Invariant 1: exactly N routed experts and the shared one contribute. Defects 3 and 4: no expert beyond
    the N kept, and a residual stream for each expert."""
    net = network(reduction=reduction, **mixture)
    latents, gates = randn(12, LATENT), routing(12)
    found = net.mix(latents, gates)
    for row in range(12):
        slow = slow_mix(net, latents[row], gates[row])
        assert found.experts[row].tolist() == slow.experts
        assert found.codes[row].tolist() == slow.codes
        torch.testing.assert_close(found.vectors[row], slow.vector)
        torch.testing.assert_close(found.shared[row], slow.shared.detach())
        torch.testing.assert_close(found.losses[row], slow.loss)


def test_gradients_of_the_mixture_are_those_of_the_formula(mixture: dict[str, Any]) -> None:
    """To latents, gates and codebooks alike."""
    net, pick = network(**mixture), randn(12, LATENT, seed=9)
    grads = []
    for slow in (False, True):
        net.zero_grad()
        latents, gates = randn(12, LATENT).requires_grad_(), routing(12).requires_grad_()
        if slow:
            rows = [slow_mix(net, z, g) for z, g in zip(latents, gates, strict=True)]
            total = sum((row.vector * p).sum() + row.loss for row, p in zip(rows, pick, strict=True))
        else:
            found = net.mix(latents, gates)
            total = (found.vectors * pick).sum() + found.losses.sum()
        assert isinstance(total, Tensor)
        total.backward()
        books = [net.routed.weight.grad] + ([] if net.shared is None else [net.shared.weight.grad])
        if mixture["routed"] == 1 and mixture.get("renormalise"):
            gates.grad = None  # 0 but for rounding: see the test on renormalised gates
        grads.append([latents.grad, gates.grad, *(None if b is None else b.clone() for b in books)])
    for fast, obvious in zip(*grads, strict=True):
        torch.testing.assert_close(fast, obvious, rtol=1e-4, atol=1e-5)


def test_the_gradient_passes_straight_through_every_active_expert(mixture: dict[str, Any]) -> None:
    """``d z^ / d z = (sum_S G_e + 1) I`` with the gates held constant; without a shared expert no 1."""
    net, gates = network(**mixture), routing(5)
    latents = randn(5, LATENT)
    jacobian = torch.autograd.functional.jacobian(lambda z: net.mix(z, gates).vectors.sum(0), latents)
    kept = gates.topk(mixture["routed"]).values.sum(1)
    factor = (torch.ones(5) if mixture.get("renormalise") else kept) + (1.0 if net.shared else 0.0)
    assert isinstance(jacobian, Tensor)
    for row in range(5):
        torch.testing.assert_close(jacobian[:, row], factor[row] * torch.eye(LATENT))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["latent", "vector"]))
def test_gates_are_a_distribution_and_the_strongest_are_kept(seed: int, reads: str) -> None:
    """Invariant 1: not negative, sum 1; the N largest, the strongest first."""
    net = network(seed, routed=3, router_input=reads)
    vectors = 5 * randn(9, WIDTH, seed=seed)
    latents = net.encoder(vectors)
    gates = net.gates(vectors, latents)
    assert (gates >= 0).all()
    torch.testing.assert_close(gates.sum(1), torch.ones(9))
    kept = gates.gather(1, net.choose(gates))
    torch.testing.assert_close(kept, gates.topk(3).values, rtol=1e-4, atol=0)
    read = latents if reads == "latent" else vectors
    torch.testing.assert_close(gates, (read @ net.router.weight.T + net.router.bias).softmax(1))


def test_equal_gates_go_to_the_lowest_expert() -> None:
    net = network(routed=3)
    gates = torch.tensor([[0.2, 0.3, 0.2, 0.3], [0.25, 0.25, 0.25, 0.25]])
    assert net.choose(gates).tolist() == [[1, 3, 0], [0, 1, 2]]


def test_the_second_expert_is_the_second_strongest_however_sure_the_router_is() -> None:
    """Gates of about 1e-9 and 1e-18 beside one of about 1 are still in order."""
    net = network(routed=3)
    gates = torch.tensor([[0.0, 20.0, 41.0, 62.0]]).softmax(1)
    assert net.choose(gates).tolist() == [[3, 2, 1]]


def test_zeroing_an_expert_that_is_not_kept_changes_nothing(mixture: dict[str, Any]) -> None:
    """Invariant 1; zeroing a kept one, and the shared one, does change z^."""
    net = network(**mixture)
    latents, gates = randn(30, LATENT), routing(30)
    before = net.mix(latents, gates)
    for expert in range(EXPERTS):
        kept = (before.experts == expert).any(1)
        assert kept.any()
        weight = net.routed.weight.detach().clone()
        net.routed.weight.data[expert] = 0.0
        after = net.mix(latents, gates).vectors
        net.routed.weight.data.copy_(weight)
        assert torch.equal(after[~kept], before.vectors[~kept])
        if net.shared is None or mixture["combination"] != "routed-first":
            assert (after[kept] != before.vectors[kept]).any(1).all()
    if net.shared is not None:
        net.shared.weight.data.zero_()
        after = net.mix(latents, gates).vectors
        assert (after != before.vectors).any(1).all()


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_a_zero_code_at_every_level_keeps_the_error_from_growing(combination: str) -> None:
    """Invariant 2, for what the routed experts quantize: E_e(z) is the sum of the looked-up codes."""
    net = network(combination=combination)
    net.routed.weight.data[:, :, 0] = 0.0
    latents, gates = randn(30, LATENT), routing(30)
    found, target = net.mix(latents, gates), net.target(latents)
    expert = found.experts[:, 0]
    errors = [
        net.routed.residual(target, expert, found.codes[:, :depth]).square().sum(1)
        for depth in range(LEVELS + 1)
    ]
    for before, after in pairwise(errors):
        assert (after <= before * (1 + 1e-5) + 1e-6).all()
    looked_up = sum(net.routed.look_up(expert, found.codes[:, level], level) for level in range(LEVELS))
    torch.testing.assert_close(net.routed.sums(expert, found.codes), looked_up)


# --- the losses ---------------------------------------------------------------------------------------------

PRESENT, EACH = 3, 9


def stratified(seed: int = 1, each: int = EACH) -> Tensor:
    """``(P, n, D)``: domains with different means."""
    return randn(PRESENT, each, WIDTH, seed=seed) + 2 * randn(PRESENT, 1, WIDTH, seed=seed + 1)


def losses_of(net: UniTokNetwork, vectors: Tensor, weights: Tensor | None = None) -> Losses:
    own = torch.eye(EXPERTS, dtype=torch.bool)[: len(vectors)]
    found: Losses = net(
        vectors,
        torch.arange(len(vectors)),
        torch.ones(len(vectors)) if weights is None else weights,
        own,
    )
    return found


LOSSES = [
    {"reduction": reduction, "normalised_information": normalised, "router_input": reads, **more}
    for reduction, normalised, reads in (("sum", True, "latent"), ("mean", False, "vector"))
    for more in ({}, {"routed": 2}, {"combination": "residual"}, {"combination": "routed-first"})
]


@pytest.mark.parametrize("changes", LOSSES, ids=lambda c: "-".join(map(str, c.values())))
def test_losses_and_gradients_are_those_of_the_formula(changes: dict[str, Any]) -> None:
    """All five terms and their weighted sum; gradients of all but the calibration, which `dependence`
    answers for."""
    weighed = {"quantization": 0.7, "calibration": 0.3, "load_balancing": 0.2, "supervision": 0.1}
    net = network(**weighed, beta=0.8, **changes)
    o, vectors, weights = net.options, stratified(), torch.tensor([0.5, 1.0, 1.5])
    found = losses_of(net, vectors, weights)

    reconstruction = quantization = supervision = torch.zeros(())
    share, mean_gate = torch.zeros(EXPERTS), torch.zeros(EXPERTS)
    count, latents = PRESENT * EACH, net.encoder(vectors)
    for domain in range(PRESENT):
        for x, z in zip(vectors[domain], latents[domain], strict=True):
            scores = net.router(z if o.router_input == "latent" else x)
            gates = scores.exp() / scores.exp().sum()
            slow = slow_mix(net, z, gates)
            squares = (x - net.decoder(slow.vector)).square().sum() / (WIDTH if o.reduction == "mean" else 1)
            reconstruction = reconstruction + weights[domain] * squares / count
            quantization = quantization + weights[domain] * slow.loss / count
            supervision = supervision - gates[domain].log() / count
            mean_gate = mean_gate + gates / count
            for expert in slow.experts:
                share[expert] += 1 / (count * o.routed)
    balancing = EXPERTS * (share * mean_gate).sum()
    each = [
        slow_information(vectors[k].numpy(), latents[k].detach().numpy(), o.normalised_information)
        for k in range(PRESENT)
    ]
    calibration = float(np.var(each)) - 0.8 * float(np.mean(each))
    torch.testing.assert_close(found.reconstruction, reconstruction)
    torch.testing.assert_close(found.quantization, quantization)
    torch.testing.assert_close(found.supervision, supervision)
    torch.testing.assert_close(found.balancing, balancing)
    assert float(found.calibration.detach()) == pytest.approx(calibration, abs=1e-5)
    rest = reconstruction + 0.7 * quantization + 0.2 * balancing + 0.1 * supervision
    assert float(found.total.detach()) == pytest.approx(float(rest.detach()) + 0.3 * calibration, rel=1e-4)

    parameters = list(net.parameters())
    ours = torch.autograd.grad(found.total - 0.3 * found.calibration, parameters)
    for fast, obvious in zip(ours, torch.autograd.grad(rest, parameters), strict=True):
        torch.testing.assert_close(fast, obvious, rtol=1e-3, atol=1e-5)


def gradients(net: UniTokNetwork, loss: Tensor) -> dict[str, float]:
    """Sum of absolute gradients of each part."""
    names, parameters = zip(*net.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    sums: dict[str, float] = {}
    for name, grad in zip(names, found, strict=True):
        part = name.split(".")[0]
        sums[part] = sums.get(part, 0.0) + (0.0 if grad is None else float(grad.abs().sum()))
    return sums


def test_the_quantization_loss_moves_codebooks_and_encoder_alone() -> None:
    """Invariant 3: selected codes only, and z through the mu term."""
    net = network()
    found = gradients(net, losses_of(net, stratified()).quantization)
    assert min(found["routed"], found["shared"], found["encoder"]) > 0
    assert found["router"] == found["decoder"] == 0
    vectors = stratified()
    latents = net.encoder(vectors.flatten(0, 1))
    mixed = net.mix(latents, net.gates(vectors.flatten(0, 1), latents))
    grad = torch.autograd.grad(mixed.losses.sum(), net.routed.weight)[0]
    for level in range(LEVELS):
        selected = torch.zeros(EXPERTS, 5, dtype=torch.bool)
        selected[mixed.experts[:, 0], mixed.codes[:, level]] = True
        assert torch.equal(grad[:, level].abs().sum(2) > 0, selected)
    net = network(commitment=0.0)
    assert gradients(net, losses_of(net, stratified()).quantization)["encoder"] == 0


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_the_router_learns_from_reconstruction_alone(combination: str) -> None:
    """Invariant 4; and the codebooks do not."""
    net = network(combination=combination)
    found = gradients(net, losses_of(net, stratified()).reconstruction)
    assert min(found["router"], found["encoder"], found["decoder"]) > 0
    assert found["routed"] == found["shared"] == 0


def test_renormalising_a_single_gate_takes_the_gradient_from_the_router() -> None:
    """Why the option is meant for N > 1."""
    net = network(renormalise=True)
    assert gradients(net, losses_of(net, stratified()).reconstruction)["router"] < 1e-5
    net = network(renormalise=True, routed=2)
    assert gradients(net, losses_of(net, stratified()).reconstruction)["router"] > 1e-3


# --- calibration --------------------------------------------------------------------------------------------


def test_dependence_has_its_worked_value_and_its_properties() -> None:
    """Invariant 5."""
    line = torch.tensor([[0.0], [1.0], [2.0]])
    assert float(hsic(line, line, 1, 1)) == pytest.approx(0.20088, abs=1e-5)
    x, z = randn(20, WIDTH), randn(20, WIDTH)[:, :LATENT] + 0.1 * randn(20, LATENT, seed=2)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    for measure in (hsic, cka):
        value = float(measure(x, z))
        assert value > 0
        assert float(measure(x, torch.ones(20, LATENT))) == 0
        assert float(measure(z, x)) == pytest.approx(value, rel=1e-5)
        assert float(measure(x[order], z[order])) == pytest.approx(value, rel=1e-4)
        assert float(measure(x, z[order])) < 0.8 * value


@pytest.mark.parametrize("normalised", [False, True])
def test_calibration_has_a_gradient_to_the_encoder_and_to_nothing_else(normalised: bool) -> None:
    """Invariant 6, defect 1: finite, not zero, not cut from the graph. Defect 2: it looks at z, not at z^."""
    net = network(normalised_information=normalised)
    found = losses_of(net, stratified())
    assert math.isfinite(float(found.calibration.detach()))
    assert float(found.calibration.detach()) < -1e-3
    grads = gradients(net, found.calibration)
    assert grads["encoder"] > 1e-4
    assert {part: value for part, value in grads.items() if value} == {"encoder": grads["encoder"]}
    net.routed.weight.data.normal_()
    assert net.shared is not None
    net.shared.weight.data.normal_()
    assert torch.equal(losses_of(net, stratified()).calibration, found.calibration)


def test_every_domain_is_measured_by_itself() -> None:
    """Defect 1 and 2: a domain is its n items, not one item and not the batch."""
    net, vectors = network(), stratified()
    latents = net.encoder(vectors)
    each = net.information(vectors, latents)
    for domain in range(PRESENT):
        torch.testing.assert_close(each[domain], hsic(vectors[domain], latents[domain]))
    torch.testing.assert_close(each[[2, 0]], net.information(vectors[[2, 0]], latents[[2, 0]]))


def test_equal_information_leaves_minus_beta_times_the_mean() -> None:
    """Invariant 6: the variance part is 0, and so is its gradient."""
    equal = torch.full((4,), 0.3, requires_grad=True)
    torch.testing.assert_close(calibrate(equal, 1.0), torch.tensor(-0.3))
    torch.testing.assert_close(calibrate(equal, 0.5), torch.tensor(-0.15))
    assert not torch.autograd.grad(calibrate(equal, 0.0), equal)[0].any()
    net, vectors = network(), stratified()[:1].expand(PRESENT, -1, -1)
    single = net.information(vectors[:1], net.encoder(vectors[:1]))[0]
    torch.testing.assert_close(losses_of(net, vectors).calibration, -single)


def test_calibration_is_the_population_variance_minus_the_mean() -> None:
    values = torch.tensor([0.1, 0.2, 0.6])
    assert float(calibrate(values, 0.5)) == pytest.approx(float(np.var([0.1, 0.2, 0.6])) - 0.5 * 0.3)


def test_one_domain_leaves_minus_beta_times_its_information() -> None:
    """Invariant 7."""
    net, vectors = network(beta=0.7), stratified()[:1]
    latents = net.encoder(vectors)
    torch.testing.assert_close(losses_of(net, vectors).calibration, -0.7 * hsic(vectors[0], latents[0]))


@pytest.mark.parametrize("each", [1, 2, 7])
@pytest.mark.parametrize("normalised", [False, True])
def test_too_few_items_are_skipped_and_never_nan(each: int, normalised: bool) -> None:
    """Invariant 6: n_k < 8."""
    net = network(normalised_information=normalised)
    found = losses_of(net, stratified(each=each))
    assert float(found.calibration) == 0
    assert all(torch.stack(found).isfinite())
    found.total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
    assert float(losses_of(net, stratified(each=8)).calibration.detach()) != 0


@pytest.mark.parametrize("normalised", [False, True])
def test_a_domain_of_identical_items_is_finite(normalised: bool) -> None:
    """Invariant 6: never NaN, in value or gradient."""
    net, vectors = network(normalised_information=normalised), stratified()
    vectors[1] = vectors[1, :1]
    assert float(net.information(vectors, net.encoder(vectors))[1].detach()) == pytest.approx(0, abs=1e-6)
    found = losses_of(net, vectors)
    assert all(torch.stack(found).isfinite())
    found.total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


# --- labels of domains --------------------------------------------------------------------------------------


def test_relabelling_items_changes_calibration_and_supervision_alone() -> None:
    """Invariant 7: routing looks at z, not at the label."""
    net, vectors = network(supervision=0.1, load_balancing=0.1), stratified()
    order = torch.randperm(PRESENT * EACH, generator=torch.Generator().manual_seed(0))
    relabelled = vectors.flatten(0, 1)[order].view_as(vectors)
    before, after = losses_of(net, vectors), losses_of(net, relabelled)
    for name in ("reconstruction", "quantization", "balancing"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name))
    for name in ("calibration", "supervision"):
        assert abs(float((getattr(after, name) - getattr(before, name)).detach())) > 1e-4


def test_renaming_domains_changes_nothing() -> None:
    """Invariant 7: their order and numbers have no meaning but for the experts that belong to them."""
    net, vectors, weights = network(supervision=0.1), stratified(), torch.tensor([0.5, 1.0, 1.5])
    own, order = torch.eye(EXPERTS, dtype=torch.bool)[:PRESENT], torch.tensor([2, 0, 1])
    before = net(vectors, torch.arange(PRESENT), weights, own)
    after = net(vectors[order], order, weights[order], own)
    torch.testing.assert_close(torch.stack(after), torch.stack(before))


@pytest.mark.parametrize("gap", [46.0, 200.0])
def test_supervision_is_felt_however_sure_the_router_is(gap: float) -> None:
    """An item whose own expert has a gate of 1e-20, or one too small for a float, must still be pulled to
    it."""
    net = network(router_input="vector", supervision=1.0)
    net.router.weight.data.zero_()
    net.router.bias.data.copy_(torch.tensor([0.0, 0.0, 0.0, gap]))
    supervision = losses_of(net, stratified()).supervision
    assert float(supervision.detach()) == pytest.approx(gap, abs=0.1)
    assert float(torch.autograd.grad(supervision, net.router.bias)[0][3]) == pytest.approx(1, abs=1e-3)


def test_even_use_of_the_experts_has_the_least_balancing_loss() -> None:
    net = network(router_input="vector")
    vectors = torch.eye(EXPERTS, WIDTH)[:, None].repeat(1, 2, 1)
    net.router.bias.data.zero_()
    net.router.weight.data.copy_(50 * torch.eye(EXPERTS, WIDTH))
    own = torch.eye(EXPERTS, dtype=torch.bool)
    even = net(vectors, torch.arange(EXPERTS), torch.ones(EXPERTS), own)
    torch.testing.assert_close(even.balancing, torch.tensor(1.0))
    uneven = net(vectors[:1].expand_as(vectors), torch.arange(EXPERTS), torch.ones(EXPERTS), own)
    torch.testing.assert_close(uneven.balancing, torch.tensor(float(EXPERTS)))


# --- sizes, start, and what the identifier does not say -----------------------------------------------------


def test_the_paper_preset_has_the_parameters_of_the_paper() -> None:
    """Invariant 8: 8.75 M in the autoencoder, 0.36 M in the codebooks, a router of 32 x 10."""
    with torch.device("meta"):
        net = UniTokNetwork(768, 10, UniTokOptions.parse({"preset": "unitok-paper"}, "tokenizer"))
    assert net.shared is not None

    def count(*modules: torch.nn.Module) -> int:
        return sum(parameter.numel() for module in modules for parameter in module.parameters())

    assert count(net.encoder, net.decoder) == 8_745_632
    assert count(net.routed, net.shared) == 360_448
    assert count(net.router) == 330
    assert count(net) == 8_745_632 + 360_448 + 330


def test_a_router_that_reads_vectors_has_their_width() -> None:
    assert network(router_input="vector").router.weight.shape == (EXPERTS, WIDTH)
    assert network(router_input="latent").router.weight.shape == (EXPERTS, LATENT)


def test_the_discriminant_is_the_probability_under_gaussians_with_one_covariance() -> None:
    groups = [randn(40, LATENT, seed=k) * torch.tensor([1.0, 2.0, 0.5, 1.0]) + 3 * k for k in range(3)]
    weights, biases = discriminant(groups)
    means = [group.double().mean(0).numpy() for group in groups]
    spread = np.mean([np.cov(group.double().numpy().T, bias=True) for group in groups], axis=0)
    spread += (0.1 * np.trace(spread) / LATENT + 1e-6) * np.eye(LATENT)
    inverse = np.linalg.inv(spread)
    x = randn(10, LATENT, seed=7) + 3
    logs = np.array([[-0.5 * (row - m) @ inverse @ (row - m) for m in means] for row in x.double().numpy()])
    wanted = np.exp(logs - logs.max(1, keepdims=True))
    wanted /= wanted.sum(1, keepdims=True)
    found = (x @ weights.T + biases).softmax(1)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-4)


def test_the_discriminant_of_single_and_identical_vectors_is_finite() -> None:
    for groups in ([torch.ones(1, 3), torch.zeros(1, 3)], [torch.ones(5, 3), torch.ones(5, 3)]):
        weights, biases = discriminant(groups)
        assert weights.isfinite().all()
        assert biases.isfinite().all()


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize(
    ("changes", "scale"), [({}, 2.0), ({"combination": "residual"}, 1.0), ({"shared": False}, 1.0)]
)
def test_warm_up_is_an_autoencoder_at_the_scale_of_exact_experts(
    changes: dict[str, Any], scale: float, reduction: str
) -> None:
    net, vectors, weights = network(reduction=reduction, **changes), stratified(), torch.tensor([0.5, 1, 1.5])
    wanted = 0.0
    for domain in range(PRESENT):
        for x in vectors[domain]:
            error = (x - net.decoder(scale * net.encoder(x))).square()
            error = error.sum() if reduction == "sum" else error.mean()
            wanted += float((weights[domain] * error).detach())
    assert float(net.warm_up(vectors, weights).detach()) == pytest.approx(wanted / (PRESENT * EACH), rel=1e-5)


def test_training_mode_counts_codes_only_where_items_are_quantized_to_learn() -> None:
    """Looking at the target of the routed experts is no use of the shared expert's codes: codes that only
    such looks chose would never be revived."""
    net = network(combination="residual").train()
    assert isinstance(net.shared, ExpertCodebooks)
    net.target(randn(20, LATENT))
    net.imagine(randn(20, LATENT), torch.zeros(20, dtype=torch.int64))
    assert not net.shared.used.any()
    net.mix(randn(20, LATENT), routing(20))
    assert int(net.shared.used.sum()) == 20 * LEVELS


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_an_imagined_item_takes_means_for_what_its_identifier_does_not_say(combination: str) -> None:
    net = network(combination=combination)
    net.mean_gate.copy_(torch.tensor([0.3, 0.5, 0.7, 0.9]))
    net.mean_shared.copy_(randn(EXPERTS, LATENT, seed=5))
    routed, experts = randn(6, LATENT), torch.tensor([0, 1, 2, 3, 3, 0])
    found = net.imagine(routed, experts)
    for row, expert in enumerate(experts.tolist()):
        total = net.mean_gate[expert] * routed[row]
        if combination == "sum":
            assert net.shared is not None
            total = total + residual_quantized(net.shared.weight[0], routed[row], net.options)[0]
        else:
            total = total + net.mean_shared[expert]
        torch.testing.assert_close(found[row], net.decoder(total))
