"""Expert codebooks against loops that follow the formulas, and against single residual codebooks.

Numbers in docstrings are the invariants of the specification of UniTok (section 6) that a test covers.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from catalex.quantize import Codebook, residual_distances, residual_encode
from catalex.quantize.experts import ExpertCodebooks

EXPERTS, LEVELS, SIZE, WIDTH = 3, 4, 5, 6


def books(seed: int = 0, *, commitment: float = 0.25, reduction: str = "sum") -> ExpertCodebooks:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ExpertCodebooks(EXPERTS, LEVELS, SIZE, WIDTH, commitment=commitment, reduction=reduction)  # type: ignore[arg-type]


def batch(rows: int = 40, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Vectors and the experts they are sent to."""
    generator = torch.Generator().manual_seed(seed)
    vectors = 2 * torch.randn(rows, WIDTH, generator=generator)
    return vectors, torch.randint(0, EXPERTS, (rows,), generator=generator)


def by_hand(weight: np.ndarray, vector: np.ndarray) -> tuple[list[int], np.ndarray, list[np.ndarray]]:
    """Codes, sum of code vectors and residuals r_0 .. r_L of one vector under one expert ``(L, T, d)``."""
    rest, codes, total, rests = vector.astype(np.float64), [], np.zeros(len(vector)), [vector]
    for table in weight.astype(np.float64):
        errors = [float(((rest - code) ** 2).sum()) for code in table]
        best = errors.index(min(errors))
        codes.append(best)
        rest, total = rest - table[best], total + table[best]
        rests.append(rest)
    return codes, total, rests


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_codes_sums_and_losses_are_those_of_the_formula(reduction: str) -> None:
    net = books(reduction=reduction)
    vectors, experts = batch()
    found = net(vectors, experts)
    weight = net.weight.detach().numpy()
    for row, expert in enumerate(experts.tolist()):
        codes, total, rests = by_hand(weight[expert], vectors[row].numpy())
        assert found.codes[row].tolist() == codes
        np.testing.assert_allclose(found.vectors[row].detach(), total, atol=1e-5)
        squares = sum(float((rest**2).sum()) for rest in rests[1:])
        loss = 1.25 * squares / (1 if reduction == "sum" else WIDTH)
        assert float(found.losses[row].detach()) == pytest.approx(loss, rel=1e-4)


def test_every_expert_encodes_as_its_codebooks_alone() -> None:
    net = books()
    vectors, experts = batch()
    found = net(vectors, experts)
    for expert in range(EXPERTS):
        rows = experts == expert
        alone = residual_encode(vectors[rows], list(net.weight.detach()[expert]))
        torch.testing.assert_close(found.codes[rows], alone)
        for level in range(LEVELS):
            prefix = alone[:, :level]
            rest = net.residual(vectors[rows], experts[rows], prefix)
            torch.testing.assert_close(
                net.distances(rest, experts[rows], level),
                residual_distances(vectors[rows], prefix, list(net.weight.detach()[expert])),
            )


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_losses_and_gradients_of_one_expert_are_those_of_a_chain_of_codebooks(reduction: str) -> None:
    net = books(reduction=reduction)
    vectors, _ = batch()
    chain = [Codebook(SIZE, WIDTH, beta=0.25, reduction=reduction) for _ in range(LEVELS)]  # type: ignore[arg-type]
    for level, codebook in enumerate(chain):
        codebook.weight.data.copy_(net.weight.data[1, level])
    rest = latents = vectors.clone().requires_grad_()
    wanted = vectors.new_zeros(())
    for codebook in chain:
        quantized = codebook(rest)
        rest, wanted = rest - quantized.vectors, wanted + quantized.loss
    wanted.backward()
    ours = vectors.clone().requires_grad_()
    found = net(ours, torch.ones(len(vectors), dtype=torch.int64))
    found.losses.mean().backward()
    torch.testing.assert_close(found.losses.mean(), wanted)
    torch.testing.assert_close(ours.grad, latents.grad)
    for level, codebook in enumerate(chain):
        torch.testing.assert_close(net.weight.grad[1, level], codebook.weight.grad)  # type: ignore[index]
    assert not net.weight.grad[[0, 2]].any()  # type: ignore[index]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 10))
def test_with_a_zero_code_at_every_level_no_level_makes_it_worse(seed: int, scale: float) -> None:
    """Invariant 2: the error of the first l levels does not increase with l; and E_e(z) is the sum of the
    looked-up codes."""
    net = books(seed)
    with torch.no_grad():
        net.weight *= scale
        net.weight[:, :, seed % SIZE] = 0.0
    vectors, experts = batch(12, seed)
    found = net(vectors, experts)
    looked_up = [net.look_up(experts, found.codes[:, level], level) for level in range(LEVELS)]
    sums = torch.stack([torch.zeros_like(vectors), *looked_up]).cumsum(0)
    errors = (vectors - sums).square().sum(2)
    assert (errors[1:] <= errors[:-1] * (1 + 1e-5) + 1e-5).all()
    torch.testing.assert_close(found.vectors, sums[-1])
    torch.testing.assert_close(net.sums(experts, found.codes), found.vectors)


def test_the_loss_moves_selected_codes_only() -> None:
    """Invariant 3: other codes, and all codes of other experts, get no gradient."""
    net = books()
    vectors, _ = batch(3)
    experts = torch.tensor([0, 2, 2])
    found = net(vectors, experts)
    found.losses.sum().backward()
    selected = torch.zeros(EXPERTS, LEVELS, SIZE, dtype=torch.bool)
    for row, expert in enumerate(experts.tolist()):
        for level in range(LEVELS):
            selected[expert, level, found.codes[row, level]] = True
    moved = net.weight.grad.abs().sum(3) > 0  # type: ignore[union-attr]
    torch.testing.assert_close(moved, selected)


@pytest.mark.parametrize("commitment", [0.0, 0.25, 2.0])
def test_the_vector_is_reached_through_the_commitment_term_alone(commitment: float) -> None:
    """Invariant 3: the gradient to z is ``2 mu sum_l r_l``, nothing when mu is 0."""
    net = books(commitment=commitment)
    vectors, experts = batch(9)
    vectors.requires_grad_()
    net(vectors, experts).losses.sum().backward()
    for row, expert in enumerate(experts.tolist()):
        rests = by_hand(net.weight.detach().numpy()[expert], vectors[row].detach().numpy())[2]
        np.testing.assert_allclose(vectors.grad[row], 2 * commitment * sum(rests[1:]), atol=1e-4)  # type: ignore[index]


def test_the_sums_carry_gradient_to_the_codebooks_only() -> None:
    net = books()
    vectors, experts = batch(9)
    vectors.requires_grad_()
    found = net(vectors, experts)
    assert torch.autograd.grad(found.vectors.sum(), vectors, allow_unused=True, retain_graph=True)[0] is None
    assert torch.autograd.grad(found.vectors.sum(), net.weight)[0].any()


def test_gradients_of_a_code_that_many_rows_choose_add_up() -> None:
    net = books()
    experts, codes = torch.tensor([1, 1, 2]), torch.tensor([3, 3, 3])
    net.look_up(experts, codes, 2).sum().backward()
    grad = net.weight.grad
    assert grad is not None
    torch.testing.assert_close(grad[1, 2, 3], torch.full((WIDTH,), 2.0))
    torch.testing.assert_close(grad[2, 2, 3], torch.ones(WIDTH))
    assert float(grad.sum()) == 3 * WIDTH


def test_ties_go_to_the_lowest_code() -> None:
    net = books()
    with torch.no_grad():
        net.weight[1, 0, 1:4] = 7.0
    vectors = torch.full((2, WIDTH), 7.0)
    assert net.nearest(vectors, torch.tensor([1, 1]), 0).tolist() == [1, 1]


# --- counting use -------------------------------------------------------------------------------------------


def test_use_is_counted_in_training_and_starts_anew_when_reported() -> None:
    net = books().eval()
    vectors, experts = batch()
    net(vectors, experts)
    assert not net.used.any()
    net.train()
    codes = net(vectors, experts).codes
    for expert in range(EXPERTS):
        for level in range(LEVELS):
            counts = torch.bincount(codes[experts == expert, level], minlength=SIZE)
            torch.testing.assert_close(net.used[expert, level], counts)
    shares = (net.used > 0).float().mean(2)
    torch.testing.assert_close(net.utilisation(), shares)
    assert not net.used.any()


# --- k-means start ------------------------------------------------------------------------------------------


def error(net: ExpertCodebooks, vectors: Tensor, expert: int) -> list[float]:
    """Mean squared error after each level."""
    experts = torch.full((len(vectors),), expert)
    codes = net(vectors, experts).codes
    return [
        float(net.residual(vectors, experts, codes[:, :depth]).square().mean())
        for depth in range(1, LEVELS + 1)
    ]


def test_initialisation_quantizes_better_level_by_level_and_touches_one_expert() -> None:
    net = books().eval()
    before = net.weight.detach().clone()
    vectors, _ = batch(200)
    net.initialise(1, vectors, vectors, seed=0)
    torch.testing.assert_close(net.weight[[0, 2]], before[[0, 2]], rtol=0, atol=0)
    errors = error(net, vectors, 1)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5 * float(vectors.square().mean())
    again = books()
    again.initialise(1, vectors, vectors, seed=0)
    torch.testing.assert_close(again.weight[1], net.weight[1], rtol=0, atol=0)
    again.initialise(1, vectors, vectors, seed=1)
    assert not torch.equal(again.weight[1], net.weight[1])


def test_initialisation_uses_every_code() -> None:
    net = books().train()
    vectors, _ = batch(200)
    net.initialise(1, vectors, vectors, seed=0)
    net(vectors, torch.ones(200, dtype=torch.int64))
    torch.testing.assert_close(net.utilisation()[1], torch.ones(LEVELS))


@pytest.mark.parametrize("count", [1, 3, SIZE])
def test_with_fewer_vectors_than_codes_every_vector_becomes_a_code(count: int) -> None:
    net = books().eval()
    vectors, spare = batch(count)[0], batch(30, seed=2)[0]
    net.initialise(0, vectors, spare, seed=0)
    assert error(net, vectors, 0)[-1] == pytest.approx(0, abs=1e-6)
    first = net.weight[0, 0].detach()
    taken = [(first == row).all(1).any() for row in vectors]
    assert all(taken)
    left_over = first[count:]
    assert all(bool((spare == row).all(1).any()) for row in left_over)
    assert net.weight.isfinite().all()


def test_identical_vectors_start_finite_codebooks() -> None:
    net = books().eval()
    same = torch.ones(20, WIDTH)
    net.initialise(0, same, same, seed=0)
    assert net.weight.isfinite().all()
    assert error(net, same, 0)[-1] == pytest.approx(0, abs=1e-9)


# --- revival ------------------------------------------------------------------------------------------------


def used_once(net: ExpertCodebooks, vectors: Tensor, experts: Tensor) -> None:
    net.train()
    net.used.zero_()
    net(vectors, experts)


def test_revival_moves_dead_codes_onto_residuals_of_their_own_expert() -> None:
    net = books()
    with torch.no_grad():
        net.weight[:, :, 3:] = 80.0  # never chosen
    vectors, experts = batch(60)
    used_once(net, vectors, experts)
    alive, before = net.used > 0, net.weight.detach().clone()
    shares = net.revive(vectors, experts, seed=0)
    torch.testing.assert_close(shares, alive.float().mean(2))
    assert not net.used.any()
    assert not alive[:, :, 3:].any()
    torch.testing.assert_close(net.weight[alive], before[alive], rtol=0, atol=0)
    after = net.weight.detach()
    for expert in range(EXPERTS):
        rest = vectors[experts == expert]
        for level in range(LEVELS):
            for code in torch.nonzero(~alive[expert, level]).flatten().tolist():
                distance = (rest - after[expert, level, code]).abs().amax(1).min()
                assert float(distance) < 1e-5, (expert, level, code)
            chosen = residual_encode(rest, [after[expert, level]])[:, 0]
            rest = rest - after[expert, level][chosen]


def test_revived_codes_are_chosen_again() -> None:
    net = books()
    with torch.no_grad():
        net.weight[:, 0, 3:] = 80.0
    vectors, experts = batch(300)
    used_once(net, vectors, experts)
    before = net.revive(vectors, experts, seed=0)[:, 0]
    used_once(net, vectors, experts)
    assert (net.utilisation()[:, 0] > before).all()


def test_an_expert_without_members_is_left_alone() -> None:
    net = books()
    vectors, experts = batch()
    experts = experts.clamp(max=1)
    used_once(net, vectors, experts)
    before = net.weight.detach().clone()
    shares = net.revive(vectors, experts, seed=0)
    assert shares[2].tolist() == [0.0] * LEVELS
    torch.testing.assert_close(net.weight[2], before[2], rtol=0, atol=0)
    net.revive(vectors[:0], experts[:0], seed=0)
    torch.testing.assert_close(net.weight[2], before[2], rtol=0, atol=0)


def test_one_seed_one_revival() -> None:
    vectors, experts = batch()
    results = []
    for seed in (0, 0, 1):
        net = books()
        net.revive(vectors, experts, seed=seed)  # nothing was used: every code moves
        results.append(net.weight.detach().clone())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_many_vectors_place_the_codebooks_by_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """More vectors than the limit: the same result whatever lies beyond the sample, and close to all."""
    vectors = torch.randn(400, 4, generator=torch.Generator().manual_seed(5))
    book = ExpertCodebooks(1, 2, 8, 4, commitment=0.25, reduction="sum")
    book.initialise(0, vectors, vectors, seed=0)
    everything = book.weight.detach().clone()
    monkeypatch.setattr("catalex.quantize.experts.PLACING_ROWS", 300)
    book.initialise(0, vectors, vectors, seed=0)
    sampled = book.weight.detach().clone()
    assert not torch.equal(sampled, everything)
    book.initialise(0, vectors, vectors, seed=0)
    torch.testing.assert_close(book.weight.detach(), sampled, rtol=0, atol=0)
    zeros = torch.zeros(400, dtype=torch.int64)
    errors = []
    for weight in (everything, sampled):
        book.weight.data.copy_(weight)
        with torch.no_grad():
            found = book(vectors, zeros).vectors
        errors.append(float((vectors - found).square().mean()))
    assert errors[1] < 1.2 * errors[0]


def test_trained_experts_are_compared_only_where_vectors_go_and_alike() -> None:
    """Distances equal those of all experts at once, whatever else is in the block."""
    found = books()
    vectors, experts = batch()
    all_at_once = found.distances(vectors, experts, 1)  # in training mode
    found.eval()
    torch.testing.assert_close(found.distances(vectors, experts, 1), all_at_once, atol=1e-5, rtol=1e-5)
    alone = found.distances(vectors, torch.full_like(experts, 2), 1)
    mixed = found.distances(vectors, experts, 1)
    assert torch.equal(mixed[experts == 2], alone[experts == 2])
    assert torch.equal(found.nearest(vectors, experts, 1), mixed.argmin(1))
