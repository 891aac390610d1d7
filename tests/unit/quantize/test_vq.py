"""The learned codebook: values, gradients, moving averages, rescue of dead codes."""

from __future__ import annotations

import pytest
import torch

from catalex.quantize import Codebook, straight_through


def make(**options: object) -> tuple[Codebook, torch.Tensor]:
    torch.manual_seed(0)
    return Codebook(6, 4, **options), torch.randn(20, 4, requires_grad=True)  # type: ignore[arg-type]


def test_straight_through_has_the_quantized_value_and_the_identity_gradient() -> None:
    book, vectors = make()
    out = straight_through(vectors, book(vectors).vectors)
    torch.testing.assert_close(out, book.weight[book(vectors).codes])
    weights = torch.randn(20, 4)
    (out * weights).sum().backward()
    torch.testing.assert_close(vectors.grad, weights)
    assert book.weight.grad is None


@pytest.mark.parametrize(("reduction", "divisor"), [("sum", 20), ("mean", 80)])
def test_loss_is_the_formula(reduction: str, divisor: int) -> None:
    book, vectors = make(beta=0.25, reduction=reduction)
    found = book(vectors)
    squares = (vectors - found.vectors).square().sum().item()
    assert found.loss.item() == pytest.approx(1.25 * squares / divisor)


def test_gradient_reaches_chosen_codes_only_and_beta_scales_the_commitment() -> None:
    book, vectors = make(beta=0.5)
    found = book(vectors)
    found.loss.backward()
    chosen = torch.zeros(6, dtype=torch.bool)
    chosen[found.codes] = True
    assert book.weight.grad is not None
    assert (book.weight.grad[~chosen] == 0).all()
    assert (book.weight.grad[chosen].abs().sum(1) > 0).all()
    torch.testing.assert_close(vectors.grad, 0.5 * 2 * (vectors - found.vectors).detach() / 20)


def test_loss_is_zero_on_the_codes() -> None:
    book, _ = make()
    assert book(book.weight.detach().clone()).loss.item() == pytest.approx(0, abs=1e-10)


def test_moving_average_with_decay_one_changes_nothing() -> None:
    book, vectors = make(decay=1.0)
    before = book.weight.clone()
    book(vectors)
    assert torch.equal(book.weight, before)
    assert not any(True for _ in book.parameters())


def test_moving_average_tends_to_the_cluster_means() -> None:
    book, vectors = make(decay=0.5)
    for _ in range(60):
        codes = book(vectors.detach()).codes
    for code in torch.unique(codes).tolist():
        torch.testing.assert_close(
            book.weight[code], vectors[codes == code].mean(0).detach(), atol=1e-4, rtol=1e-4
        )


def test_evaluation_mode_updates_nothing() -> None:
    book, vectors = make(decay=0.5)
    book.eval()
    before = {name: tensor.clone() for name, tensor in book.state_dict().items()}
    book(vectors)
    assert all(torch.equal(before[name], tensor) for name, tensor in book.state_dict().items())


@pytest.mark.parametrize("decay", [None, 0.99])
def test_dead_codes_move_onto_vectors_and_live_ones_stay(decay: float | None) -> None:
    book, vectors = make(decay=decay)
    with torch.no_grad():
        book.weight[3] = 100.0
    used = torch.unique(book(vectors).codes)
    before = book.weight.detach().clone()
    moved = book.revive(vectors.detach(), seed=0)
    assert moved == 6 - len(used)
    assert torch.equal(book.weight[used], before[used])
    assert (book.weight[3] == vectors.detach()).all(1).any()
    assert int(book.used.sum()) == 0


def test_a_revived_code_counts_as_one_selection() -> None:
    """Else its moving average would start from the weight of a code long dead, and jump with the first
    vector."""
    book, vectors = make(decay=0.9)
    book.count[3] = 1e-9
    book.used[[0, 1, 2, 4, 5]] = 1
    book.revive(vectors.detach(), seed=0)
    assert book.count[3] == 1
    assert torch.equal(book.total[3], book.weight[3])


def test_initialise_places_codes_on_k_means_centroids() -> None:
    book, vectors = make()
    data = vectors.detach()
    book.initialise(data, seed=0)
    codes = book(data).codes
    for code in range(6):
        torch.testing.assert_close(
            book.weight[code].detach(), data[codes == code].mean(0), atol=1e-4, rtol=1e-4
        )
