"""Each Triton kernel against the same formula in plain torch, with the same dropout decisions.

Runs on a GPU, or anywhere under Triton's interpreter (``TRITON_INTERPRET=1``).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from catalex.models.packed_rows import Rows, rows_attention, rows_cross_attention
from catalex.models.packed_triton import TritonOps, kept, suits
from catalex.models.t5 import IGNORE, T5, T5Options
from catalex.models.t5_packed import packed_loss
from support.packed import in_rows, random_examples

pytest.importorskip("triton", reason="Triton is not installed")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
HEADS, WIDTH, HEAD_WIDTH, INNER = 2, 32, 16, 64
RATES = pytest.mark.parametrize("rate", [0.0, 0.3])


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape).to(DEVICE).requires_grad_()


def ops(rate: float) -> TritonOps:
    torch.manual_seed(1)
    return TritonOps(rate, HEADS, torch.device(DEVICE), torch.float32)


def dropper(made: TritonOps, site: int) -> Callable[[Tensor], Tensor]:
    """Dropout with the decisions of one site, places numbered in order."""
    dropout = made.dropout

    def drop(x: Tensor) -> Tensor:
        places = torch.arange(x.numel(), device=x.device).view(x.shape)
        mask = kept(dropout.seeds, site, places, dropout.threshold)
        return torch.where(mask, x * dropout.scale, 0.0) if dropout.on else x

    return drop


def check(fast: Tensor, slow: Tensor, inputs: tuple[Tensor, ...]) -> None:
    """Same values, and same gradients for a random direction."""
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)
    direction = torch.randn(slow.shape).to(DEVICE)
    got = torch.autograd.grad(fast, inputs, direction)
    wanted = torch.autograd.grad(slow, inputs, direction)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def layout(capacity: int = 64) -> Rows:
    batch = in_rows(random_examples([7, 3, 30, 12, 1, 25, 9], 9, 0), capacity, absent=1)
    return Rows.of({key: value.to(DEVICE) for key, value in batch.items()})


@RATES
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_add_norm(rate: float, last: bool, first: bool) -> None:
    made = ops(rate)
    x, y, gain = draw(37, WIDTH), draw(37, WIDTH), draw(WIDTH)
    summed, normed = made.add_norm(x, None if first else y, *made.gains([gain]), last=last)
    wanted = x if first else x + dropper(made, 0)(y)
    norm = F.rms_norm(wanted, (WIDTH,), gain, 1e-6)
    inputs = (x, gain) if first else (x, y, gain)
    norm = dropper(made, 1)(norm) if last else norm
    check(torch.cat([summed, normed]), torch.cat([wanted, norm]), inputs)
    check(
        made.add_norm(x, None, *made.gains([gain]))[1], F.rms_norm(x, (WIDTH,), gain, 1e-6), (x, gain)
    )  # sum unused


@RATES
@pytest.mark.parametrize("rows", [5, 130])
def test_feed_forward(rate: float, rows: int) -> None:
    made = ops(rate)
    x, wi, wo = draw(rows, WIDTH), draw(INNER, WIDTH), draw(WIDTH, INNER)
    slow = dropper(made, 0)(torch.relu(x @ wi.t())) @ wo.t()
    check(made.feed_forward(x, wi, wo), slow, (x, wi, wo))


@RATES
def test_self_attention_in_rows(rate: float) -> None:
    made, rows = ops(rate), layout()
    qkv, bias = draw(len(rows.segments), 3 * HEADS * HEAD_WIDTH), draw(HEADS, 64, 64)
    slow = rows_attention(qkv, bias, rows, HEADS, dropper(made, 0))
    check(made.self_attention(qkv, *made.biases(bias, 1), rows), slow, (qkv, bias))


def test_self_attention_of_decoder_positions() -> None:
    """Three positions an example: 21 examples to a row of 64, one place is left over; causal."""
    made = ops(0.0)
    rows = layout().decoder(30, 3, torch.device(DEVICE))
    assert (rows.capacity, rows.step) == (64, 63)
    future = torch.full((64, 64), -torch.inf, device=DEVICE).triu(1)
    qkv, bias = draw(90, 3 * HEADS * HEAD_WIDTH), draw(HEADS, 64, 64)
    slow = rows_attention(qkv, bias + future, rows, HEADS, lambda x: x)
    check(made.self_attention(qkv, *made.biases(bias + future, 1), rows), slow, (qkv, bias))


@RATES
def test_cross_attention(rate: float) -> None:
    made, rows = ops(rate), layout()
    queries, memory = draw(8 * 3, HEADS, WIDTH), draw(len(rows.segments), WIDTH)
    # an example that is not there is asked as well; what it answers is 0, and it changes no gradient
    fast = made.cross_attention(queries, memory, rows)
    check(fast, rows_cross_attention(queries, memory, rows, dropper(made, 0)), (queries, memory))
    assert not fast[-3:].any()


@RATES
def test_embed(rate: float) -> None:
    made = ops(rate)
    table = draw(70, WIDTH)
    tokens = torch.randint(0, 70, (333,)).to(DEVICE)
    check(made.embed(table, tokens), dropper(made, 0)(F.embedding(tokens, table)), (table,))


def test_cross_entropy() -> None:
    logits = draw(21, 70)
    labels = torch.randint(0, 70, (21,))
    labels[4:7] = IGNORE
    labels = labels.to(DEVICE)
    slow = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
    check(ops(0.0).cross_entropy(logits, labels), slow, (logits,))


def test_the_hash_keeps_its_rate_everywhere_and_differs_between_sites() -> None:
    seeds = torch.randint(-(2**31), 2**31 - 1, (3, 2), dtype=torch.int32)
    masks = [kept(seeds, site, torch.arange(200_000), round(0.1 * 2**24)).float() for site in range(3)]
    for mask in masks:
        assert mask.mean() == pytest.approx(0.9, abs=0.004)
        blocks = mask.view(200, 1000).mean(1)
        assert blocks.std() == pytest.approx((0.09 / 1000) ** 0.5, rel=0.25)
    together = torch.corrcoef(torch.stack([*masks, masks[0].roll(1), masks[0].roll(64)]))
    assert (together - torch.eye(5)).abs().max() < 0.012


@RATES
def test_a_whole_pass(rate: float) -> None:
    """Kernels and plain torch in one network; with dropout, the same bits for the same seed."""
    torch.manual_seed(0)
    options = T5Options(layers=1, hidden=WIDTH, feed_forward=INNER, heads=HEADS, head_width=16, dropout=rate)
    network = T5(40, options).to(DEVICE)
    batch = in_rows(random_examples([3, 9, 1, 30, 5], 40, 0), 64, absent=1)
    batch = {key: value.to(DEVICE) for key, value in batch.items()}

    def run(**how: Any) -> Tensor:
        torch.manual_seed(2)
        network.zero_grad(set_to_none=True)
        loss = packed_loss(network, batch, **how)
        loss.backward()  # type: ignore[no-untyped-call]
        return torch.cat(
            [loss.detach().view(1), *(p.grad.flatten() for p in network.parameters() if p.grad is not None)]
        )

    fast = run(kernels=True)
    assert torch.equal(fast, run(kernels=True))
    if rate:
        assert not torch.allclose(fast, run(kernels=False), rtol=1e-3)
    else:
        torch.testing.assert_close(fast, run(kernels=False), rtol=1e-3, atol=1e-5)


def test_sizes_without_kernels_are_known() -> None:
    assert suits(T5Options(preset="tiger"), 64)
    assert suits(T5Options(preset="mini"), 128)
    assert not suits(T5Options(preset="tiger"), 256)
    assert not suits(T5Options(hidden=96), 64)
    assert not suits(T5Options(hidden=128, feed_forward=1000), 64)
