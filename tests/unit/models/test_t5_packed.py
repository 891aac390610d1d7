"""The packed pass against the plain T5: same loss and gradients in every layout; gradients by differences."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from catalex.models import packed_triton, t5_packed
from catalex.models.packed_ops import Groups, TorchOps, kept
from catalex.models.packed_rows import Rows
from catalex.models.t5 import IGNORE, PAD, T5, T5Options
from catalex.models.t5_packed import packed_loss
from support.packed import Example, grouped, in_rows, padded, random_examples

VOCABULARY = 40
SIZES = T5Options(layers=2, hidden=32, feed_forward=64, heads=3, head_width=16, dropout=0.2)


def model(seed: int = 0) -> T5:
    torch.manual_seed(seed)
    made = T5(VOCABULARY, SIZES)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)  # gains that matter
    return made


def gradients(network: T5, loss: Callable[[], Tensor]) -> tuple[float, dict[str, Tensor]]:
    network.zero_grad(set_to_none=True)
    value = loss()
    value.backward()
    return value.item(), {
        name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None
    }


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, wanted in one.items():
        error = (wanted - other[name]).norm() / wanted.norm().clamp(min=1e-6)
        assert error < tolerance, (name, float(error))


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=9),
    capacity=st.sampled_from([32, 64]),
    seed=st.integers(0, 99),
    reduction=st.sampled_from(["mean", "sum"]),
)
def test_packed_equals_padded(lengths: list[int], capacity: int, seed: int, reduction: Any) -> None:
    examples = random_examples(lengths, VOCABULARY, seed)
    network = model(seed).eval()
    batch = padded(examples)
    expected, wanted = gradients(network, lambda: network.loss(batch["tokens"], batch["labels"], reduction))
    for packed in (grouped(examples), in_rows(examples, capacity)):
        found, got = gradients(network, partial(packed_loss, network, packed, reduction))
        assert found == pytest.approx(expected, rel=2e-6)
        assert_close(wanted, got, 2e-5)


@pytest.mark.parametrize("layout", ["groups", "rows"])
def test_ignored_examples_and_rows_without_example_add_nothing(layout: str) -> None:
    examples = random_examples([3, 1, 7, 3], VOCABULARY, 1)
    hidden = [*examples, Example([5, 6, 7], [IGNORE] * 4)]
    network = model().eval()
    pack = grouped if layout == "groups" else lambda e: in_rows(e, 32, absent=2)
    expected, wanted = gradients(network, lambda: packed_loss(network, grouped(examples)))
    found, got = gradients(network, lambda: packed_loss(network, pack(hidden)))
    assert found == pytest.approx(expected, rel=1e-6)
    assert_close(wanted, got, 1e-5)


def test_an_empty_share_has_a_loss_of_nothing_that_can_go_back() -> None:
    network = model().train()
    empty = {
        "tokens": torch.zeros(0, dtype=torch.long),
        "labels": torch.zeros(0, 4, dtype=torch.long),
        "widths": torch.zeros(0, 2, dtype=torch.long),
    }
    value, found = gradients(network, lambda: packed_loss(network, empty, "sum"))
    assert value == 0.0
    assert all(not gradient.any() for gradient in found.values())


@pytest.mark.parametrize("layout", ["groups", "rows"])
def test_bf16_products_err_as_those_of_the_plain_modules(layout: str) -> None:
    examples = random_examples([3, 1, 7, 3, 2], VOCABULARY, 1)
    batch = grouped(examples) if layout == "groups" else in_rows(examples, 32)
    plain = padded(examples)
    network = model().eval()

    def half(loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return loss()

        return run

    def all_of(loss: Callable[[], Tensor]) -> tuple[float, Tensor]:
        value, found = gradients(network, loss)
        return value, torch.cat([gradient.flatten() for gradient in found.values()])

    exact, wanted = all_of(lambda: network.loss(plain["tokens"], plain["labels"]))
    _, eager = all_of(half(lambda: network.loss(plain["tokens"], plain["labels"])))
    value, packed = all_of(half(lambda: packed_loss(network, batch)))
    assert value != exact
    assert value == pytest.approx(exact, rel=0.02)
    assert (packed - wanted).norm() < 1.5 * (eager - wanted).norm()


@pytest.mark.parametrize("layout", ["groups", "rows"])
def test_training_drops_out_by_torchs_seed(layout: str) -> None:
    examples = random_examples([3, 1, 7, 3, 2], VOCABULARY, 1)
    batch = grouped(examples) if layout == "groups" else in_rows(examples, 32)
    network = model().train()

    def run(seed: int) -> float:
        torch.manual_seed(seed)
        return packed_loss(network, batch).item()

    assert run(0) == run(0)
    assert run(0) != run(1)
    eager = []
    for seed in range(80):
        torch.manual_seed(seed)
        eager.append(network.loss(padded(examples)["tokens"], padded(examples)["labels"]).item())
    packed = [run(seed) for seed in range(80)]
    spread = np.std(eager) / np.sqrt(80)
    assert np.mean(packed) == pytest.approx(np.mean(eager), abs=5 * spread)
    assert np.std(packed) == pytest.approx(np.std(eager), rel=0.4)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5])
def test_kept_has_the_rate_and_restores_the_mean(rate: float) -> None:
    torch.manual_seed(0)
    mask, scale = kept((300, 1001), rate, torch.device("cpu"))
    assert mask.shape == (300, 1001)
    assert mask.float().mean() == pytest.approx(1 - rate, abs=0.003)
    assert scale * (1 - round(rate * 2**16) / 2**16) == pytest.approx(1)
    columns = mask.float().mean(0)
    assert columns.std() < 1.3 * (rate * (1 - rate) / 300) ** 0.5 + 1e-9  # no column is special


def seeded(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same dropout decisions at every call, as numerical derivatives need."""

    def run(*inputs: Tensor) -> Tensor:
        torch.manual_seed(3)
        return function(*inputs)

    return run


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_gradients_are_those_of_finite_differences(rate: float) -> None:
    ops = TorchOps(rate, 2, torch.float64)
    layout = Groups(((2, 1), (3, 4)))
    torch.manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    checked: list[tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = [
        (ops.drop, (draw(5, 3),)),
        (ops.feed_forward, (draw(6, 4), draw(8, 4), draw(4, 8))),
        (lambda x, b: ops.self_attention(x, b, layout), (draw(14, 12), draw(2, 4, 4))),
        (lambda q, m: ops.cross_attention(q, m, layout), (draw(10, 2, 3), draw(14, 3))),
        (lambda x, y, g: torch.cat(ops.add_norm(x, y, g, last=True)), (draw(4, 3), draw(4, 3), draw(3))),
    ]
    for function, inputs in checked:
        assert torch.autograd.gradcheck(seeded(function), inputs)


def test_tokens_attend_within_their_example_alone() -> None:
    """Changing one example's tokens changes no other example's part of the loss."""
    network = model().eval()
    examples = random_examples([4, 2, 4, 6], VOCABULARY, 5)

    def rows_of_loss(changed: list[Example]) -> list[float]:
        parts = []
        for kept_one in range(len(changed)):
            labels = [e.labels if i == kept_one else [IGNORE] * 4 for i, e in enumerate(changed)]
            masked = [Example(e.tokens, own) for e, own in zip(changed, labels, strict=True)]
            parts.append(packed_loss(network, in_rows(masked, 64), "sum").item())
        return parts

    before = rows_of_loss(examples)
    examples[2] = Example([9] * len(examples[2].tokens), examples[2].labels)
    after = rows_of_loss(examples)
    assert after[2] != before[2]
    assert [after[i] for i in (0, 1, 3)] == pytest.approx([before[i] for i in (0, 1, 3)], rel=1e-6)
    assert PAD not in examples[0].tokens


NO_KERNELS: dict[str, dict[str, Any]] = {
    "a CPU": {"device": "cpu"},
    "Triton is not installed": {"installed": False},
    "a device with little shared memory": {"capability": (8, 9)},
    "a width that is no power of two": {"options": T5Options(hidden=96)},
    "a narrow head": {"options": T5Options(preset="mini", head_width=8)},
    "a wide head": {"options": T5Options(preset="tiger", head_width=256)},
    "an odd feed-forward block": {"options": T5Options(preset="tiger", feed_forward=1000)},
    "more layers than dropout seeds": {"options": T5Options(preset="tiger", layers=17)},
    "long histories": {"capacity": 256},
}


def kernels_run(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> bool:
    """What `runs` says about a device that is not here."""
    found: dict[str, Any] = {"device": "cuda", "installed": True, "capability": (9, 0), "capacity": 64}
    found |= {"options": T5Options(preset="tiger"), **changes}
    monkeypatch.setattr(packed_triton, "available", lambda: found["installed"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: found["capability"])
    return packed_triton.runs(found["options"], found["capacity"], torch.device(found["device"]))


def test_the_kernels_run_on_an_h100(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels_run(monkeypatch)
    assert kernels_run(monkeypatch, options=T5Options(preset="mtg"), capacity=128)
    assert kernels_run(monkeypatch, options=T5Options(preset="mini"))
    assert kernels_run(monkeypatch, options=T5Options(preset="tiger", layers=16))


@pytest.mark.parametrize("why", NO_KERNELS)
def test_the_kernels_do_not_run_where_they_cannot(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not kernels_run(monkeypatch, **NO_KERNELS[why])


def test_a_pass_has_the_dropout_sites_that_are_counted() -> None:
    """Each operation of `TritonOps` takes its sites; the formula in `suits` counts them."""
    for layers in (1, 2, 5):
        sites = CountedSites(0.0, 2, torch.float32)
        network = T5(VOCABULARY, T5Options(layers=layers, hidden=32, feed_forward=64, heads=2, head_width=16))
        with pytest.MonkeyPatch.context() as patched:
            batch = in_rows(random_examples([3, 5], VOCABULARY, 0), 64)
            patched.setattr(t5_packed, "_ops", lambda *_, batch=batch, sites=sites: (sites, Rows.of(batch)))
            packed_loss(network, batch)
        assert sites.taken == 6 + 15 * layers


class CountedSites(TorchOps):
    """Plain torch that counts the sites that `TritonOps` would take: two in `add_norm`, one elsewhere."""

    taken = 0

    def embed(self, *arguments: Any) -> Tensor:
        self.taken += 1
        return super().embed(*arguments)

    def add_norm(self, *arguments: Any, last: bool = False) -> tuple[Tensor, Tensor]:
        self.taken += 2
        return super().add_norm(*arguments, last=last)

    def feed_forward(self, *arguments: Any) -> Tensor:
        self.taken += 1
        return super().feed_forward(*arguments)

    def self_attention(self, *arguments: Any) -> Tensor:
        self.taken += 1
        return super().self_attention(*arguments)

    def cross_attention(self, *arguments: Any) -> Tensor:
        self.taken += 1
        return super().cross_attention(*arguments)


def test_rows_fall_back_to_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = in_rows(random_examples([3, 9, 1], VOCABULARY, 0), 64)
    asked: list[tuple[int, str]] = []

    def no(_: T5Options, capacity: int, device: torch.device) -> bool:
        asked.append((capacity, device.type))
        return False

    monkeypatch.setattr(t5_packed, "runs", no)
    monkeypatch.setattr(t5_packed, "TritonOps", None)  # calling it would fail
    assert torch.isfinite(packed_loss(model(), batch))
    assert asked == [(64, "cpu")]
