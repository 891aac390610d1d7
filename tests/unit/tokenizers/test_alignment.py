"""Co-occurring alignment: by hand, against a loop, and which negatives are left out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from catalex.tokenizers.alignment import alignment_loss, false_negatives


def tensors(items: int = 6, levels: int = 3, width: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    one, other = torch.randn(2, items, levels, width, generator=generator)
    return one.requires_grad_(), other.requires_grad_()


def apart(items: int) -> tuple[Tensor, Tensor]:
    """Rows of items and positives that are all different: no false negatives."""
    return torch.arange(items), 100 + torch.arange(items)


def oracle(hidden: Tensor, positive: Tensor, rows: Tensor, positive_rows: Tensor, tau: float) -> float:
    """One item, one level, one negative at a time, in double precision."""
    h, p = hidden.detach().double(), positive.detach().double()
    terms = []
    for i in range(len(h)):
        for level in range(h.shape[1]):

            def similarity(j: int, i: int = i, level: int = level) -> float:
                a, b = h[i, level], p[j, level]
                return math.exp(float(a @ b / (a.norm() * b.norm())) / tau)

            below = similarity(i)
            for j in range(len(h)):
                if j != i and positive_rows[j] != positive_rows[i] and positive_rows[j] != rows[i]:
                    below += similarity(j)
            terms.append(-math.log(similarity(i) / below))
    return sum(terms) / len(terms)


def test_two_items_worked_by_hand() -> None:
    # Item 0 points as its positive (cosine 1) and at a right angle to the other (0): log(1 + exp(-1 / tau)).
    # Item 1 is opposed to its own positive (-1) and at a right angle to the other: log(1 + exp(1 / tau)).
    hidden = torch.tensor([[[2.0, 0.0]], [[0.0, -3.0]]])
    positive = torch.tensor([[[0.5, 0.0]], [[0.0, 1.0]]])
    for tau in (0.1, 0.5):
        expected = (math.log1p(math.exp(-1 / tau)) + math.log1p(math.exp(1 / tau))) / 2
        found = alignment_loss(hidden, positive, *apart(2), temperature=tau)
        assert found.item() == pytest.approx(expected, rel=1e-6)


def test_equals_a_loop_with_false_negatives_among_the_rows() -> None:
    hidden, positive = tensors(8)
    rows = torch.tensor([0, 1, 2, 3, 4, 5, 6, 1])
    positive_rows = torch.tensor([1, 0, 1, 9, 4, 2, 9, 3])  # 1 and 9 twice, 0 <-> 1, item 4 is its own
    for tau in (0.1, 1.0):
        found = alignment_loss(hidden, positive, rows, positive_rows, temperature=tau)
        assert found.item() == pytest.approx(oracle(hidden, positive, rows, positive_rows, tau), rel=1e-5)
    assert oracle(hidden, positive, rows, positive_rows, 0.1) != pytest.approx(
        oracle(hidden, positive, *apart(8), 0.1), rel=1e-3
    )


@pytest.mark.parametrize("items", [1, 2, 7])
def test_equal_inputs_give_the_logarithm_of_the_batch(items: int) -> None:
    same = torch.ones(items, 3, 4)
    assert alignment_loss(same, same, *apart(items)).item() == pytest.approx(math.log(items), abs=1e-6)


def test_rescaling_changes_nothing() -> None:
    hidden, positive = tensors()
    factors = torch.tensor([0.01, 1.0, 3.0, 100.0, 7.0, 0.5])[:, None, None]
    one = alignment_loss(hidden, positive, *apart(6))
    other = alignment_loss(hidden * factors, positive * factors.flip(0), *apart(6))
    assert other.item() == pytest.approx(one.item(), rel=1e-5)


def test_levels_are_averaged_and_do_not_meet() -> None:
    hidden, positive = tensors()
    each = [alignment_loss(hidden[:, [n]], positive[:, [n]], *apart(6)).item() for n in range(3)]
    whole = alignment_loss(hidden, positive, *apart(6)).item()
    assert whole == pytest.approx(sum(each) / 3, rel=1e-5)


def test_which_columns_are_false_negatives() -> None:
    rows, positive_rows = torch.tensor([0, 1, 2]), torch.tensor([5, 5, 0])
    expected = [
        [False, True, True],  # column 1 holds 0's positive again; column 2 holds item 0 itself
        [True, False, False],
        [False, False, False],
    ]
    assert false_negatives(rows, positive_rows, positive_rows).tolist() == expected
    # The second process of two: its own columns begin at 2.
    joined = torch.tensor([5, 1, 5, 5, 0])
    found = false_negatives(rows, positive_rows, joined, first=2)
    assert found.tolist() == [
        [True, False, False, True, True],
        [True, True, True, False, False],
        [False, False, False, False, False],
    ]


def test_a_masked_negative_has_no_influence_and_gets_no_gradient() -> None:
    hidden, positive = tensors(3)
    rows, positive_rows = torch.tensor([0, 1, 2]), torch.tensor([5, 5, 0])
    loss = alignment_loss(hidden, positive, rows, positive_rows)
    # Every negative of item 0 is false, so its term is 0 and so is its gradient.
    loss.backward()
    assert hidden.grad is not None
    assert hidden.grad[0].abs().max() == 0
    assert hidden.grad[1].abs().max() > 0
    moved = positive.detach().clone()
    moved[0] = moved[0] + 1.0  # a negative of item 2 alone; item 0's own, and masked for item 1
    others = [alignment_loss(hidden[1:2], p[[1]], rows[1:2], positive_rows[1:2]) for p in (positive, moved)]
    assert others[0].item() == others[1].item() == 0.0


def test_duplicates_that_share_a_number_are_no_negatives() -> None:
    hidden, positive = tensors(2)
    assert alignment_loss(hidden, positive, torch.tensor([0, 1]), torch.tensor([7, 8])).item() > 0
    assert alignment_loss(hidden, positive, torch.tensor([0, 1]), torch.tensor([7, 7])).item() == 0


def test_nothing_to_align_is_zero_and_not_nan() -> None:
    for items in (1, 0):
        hidden, positive = tensors(items)
        loss = alignment_loss(hidden, positive, *apart(items))
        loss.backward()
        assert loss.item() == 0
        for gradient in (hidden.grad, positive.grad):
            assert gradient is not None
            assert not gradient.isnan().any()
            assert gradient.abs().sum() == 0


def test_a_vector_of_zeros_gives_numbers() -> None:
    hidden = torch.zeros(3, 2, 4, requires_grad=True)
    _, positive = tensors(3, 2, 4)
    alignment_loss(hidden, positive, *apart(3)).backward()
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()


def test_gradient_reaches_both_sides_and_is_right() -> None:
    hidden, positive = (x.detach().double().requires_grad_() for x in tensors(3, 2, 4))
    rows = apart(3)
    alignment_loss(hidden, positive, *rows).backward()
    step = 1e-3
    for tensor in (hidden, positive):
        assert tensor.grad is not None
        for place in ((0, 0, 0), (2, 1, 3)):
            values = []
            for sign in (1, -1):
                moved = tensor.detach().clone()
                moved[place] += sign * step
                pair = (moved, positive) if tensor is hidden else (hidden, moved)
                values.append(oracle(*pair, *rows, 0.1))
            slope = (values[0] - values[1]) / (2 * step)
            assert tensor.grad[place].item() == pytest.approx(slope, rel=1e-3, abs=1e-5)


def test_autocast_does_not_lower_the_precision() -> None:
    hidden, positive = tensors()
    outside = alignment_loss(hidden, positive, *apart(6))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = alignment_loss(hidden, positive, *apart(6))
        from_bf16 = alignment_loss(hidden.bfloat16(), positive.bfloat16(), *apart(6))
    assert inside.dtype == from_bf16.dtype == torch.float32
    assert inside.item() == outside.item()
    rounded = oracle(hidden.bfloat16(), positive.bfloat16(), *apart(6), 0.1)
    assert from_bf16.item() == pytest.approx(rounded, rel=1e-5)
