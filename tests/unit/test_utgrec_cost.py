"""The benchmark of UTGRec's cost: its arithmetic against torch's own counter, and a run at toy size."""

from __future__ import annotations

import importlib
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from catalex.reporting.ledger import BenchmarkLine, read
from catalex.tokenizers.utgrec_network import LatentShape
from catalex.tokenizers.utgrec_options import UTGRecOptions

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--tiny", "--device", "cpu", "--text-tokens", "16", "--image-side", "56", "--batch", "4"]
RUN = [*SMALL, "--steps", "2", "--side", "64"]


MODULES = {
    "encoder": ("encoder", "vision tower"),
    "codebooks": ("codebooks",),
    "text": ("text decoder",),
    "image": ("visual decoder",),
    "vector": ("vector decoder",),
}
"""Modules of the network by what the count calls their parts."""


@pytest.fixture(scope="module", autouse=True)
def scripts() -> Iterator[None]:
    """The folder of the benchmarks as python sees it when it runs one; latents of a few tokens, few items."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        patch.setattr(importlib.import_module("_utgrec_workload"), "LATENTS", LatentShape(4, 3))
        patch.setattr(importlib.import_module("utgrec_cost"), "ROWS", 8)
        yield


@pytest.fixture
def cost() -> ModuleType:
    return importlib.import_module("utgrec_cost")


def made(cost: ModuleType, folder: Path, *given: str) -> tuple[Namespace, Any, Any]:
    """Arguments, network and material of a toy, without dropout's or checkpointing's extra work."""
    workload = importlib.import_module("_utgrec_workload")
    a = cost.arguments([*SMALL, *given])
    encoder = workload.encoder_settings(a, folder) | {"gradient_checkpointing": False}
    options = UTGRecOptions.parse({"encoder": encoder, "batch": 4}, "test")
    network = workload.make_network(a, options, "cpu")
    return a, network, workload.make_material(a, network.encoder, 16)


@pytest.mark.parametrize("images", ["0", "1"])
@pytest.mark.parametrize("encoder", ["mini", "smolvl", "qwen2-vl"])
def test_operations_agree_with_those_that_torch_counts(
    cost: ModuleType, encoder: str, images: str, tmp_path: Path
) -> None:
    if encoder != "mini":
        pytest.importorskip("peft", reason="needs the package peft")
    _, network, material = made(cost, tmp_path, "--encoder", encoder, "--images", images)
    network.text.table.data = network.text.table.data[:512].clone()  # so that the head does not hide the rest
    step = cost._step(network, material, np.arange(4), 0, 0, "cpu", cost.PartialState(cpu=True))
    step.own.tokens.clamp_(max=511)
    step.positive.tokens.clamp_(max=511)
    parts = importlib.import_module("_utgrec_flops").step_work(network, step)
    with sdpa_kernel(SDPBackend.MATH):  # the counter knows no fused attention of a CPU
        with FlopCounterMode(display=False) as forward, torch.no_grad():
            network(step, True)
        with FlopCounterMode(display=False) as training:
            network(step, True).total.backward()
    modules = {name: sum(each.values()) for name, each in forward.get_flop_counts().items()}
    for module, names in MODULES.items():
        ours = sum(parts[name].forward for name in names if name in parts)
        assert ours == pytest.approx(modules.get(f"UTGRecNetwork.{module}", 0), rel=1e-3), module
    assert sum(part.forward for part in parts.values()) == pytest.approx(forward.get_total_flops(), rel=1e-3)
    # of the first layers of the denoiser and the vector decoder we say what they cost to within a percent
    assert sum(part.training for part in parts.values()) == pytest.approx(
        training.get_total_flops(), rel=0.01
    )


@pytest.mark.parametrize("encoder", ["mini", "smolvl", "qwen2-vl"])
def test_texts_have_the_stated_tokens_and_the_stated_share_images(
    cost: ModuleType, encoder: str, tmp_path: Path
) -> None:
    if encoder != "mini":
        pytest.importorskip("peft", reason="needs the package peft")
    _, _, material = made(cost, tmp_path, "--encoder", encoder, "--images", "0.25")
    assert set(np.diff(material.index.text.offsets).tolist()) == {16}
    assert material.index.has_image.sum() == 4
    np.testing.assert_array_equal(material.latents.present, material.index.has_image)


@pytest.mark.parametrize("encoder", ["mini", "smolvl", "qwen2-vl"])
def test_a_run_reports_and_records(
    cost: ModuleType, encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if encoder != "mini":
        pytest.importorskip("peft", reason="needs the package peft")
    ledger = tmp_path / "ledger.jsonl"
    cost.main(["--encoder", encoder, "--images", "0.5", *RUN, "--record", str(ledger)])
    told = capsys.readouterr().out
    assert "16 text tokens" in told
    assert "visual decoder" in told
    assert "h on eight" in told
    lines = {line.name.split("batch-4-")[1]: line for line in read(ledger, BenchmarkLine)}
    assert set(lines) == {
        *(f"{what}-{key}" for what in ("train", "tokenize") for key in ("items", "memory", "speed")),
        *(f"{what}-items-by-processor" for what in ("train", "tokenize")),
        "paper-pretraining-on-1",
        "paper-pretraining-on-8",
    }
    for name in ("train-items", "tokenize-items"):
        assert lines[name].baseline == cost.BARE
        assert lines[name].value > 0
    assert (
        lines["train-items"].name
        == f"utgrec-cost/tiny-{encoder}-cpu-16-tokens-50%-images-batch-4-train-items"
    )


def test_a_batch_that_does_not_fit_is_halved(
    cost: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, network, material = made(cost, tmp_path, "--steps", "1")
    backward = cost._backward

    def full(network: Any, step: Any, *others: Any) -> Any:
        if len(step.rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return backward(network, step, *others)

    monkeypatch.setattr(cost, "_backward", full)
    found = cost.train(network, material, a, "cpu")
    assert (a.batch, found.items) == (2, 2)
    assert "half the batch, 2 items" in capsys.readouterr().out
    monkeypatch.setattr(cost, "_backward", lambda *parts: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cost.train(network, material, a, "cpu")


def test_hours_of_the_paper(cost: ModuleType) -> None:
    # 344,412 x 3 items, 16 a second: 17.94 h; eight devices share them, and wait 0.1 s longer a second
    assert cost.paper_hours(1.0, 16, 1, 10**9, 1e9) == pytest.approx(17.938, abs=1e-3)
    assert cost.paper_hours(1.0, 16, 8, 10**9, 17.5e9) == pytest.approx(17.938 / 8 * 1.1, abs=1e-3)


@pytest.mark.parametrize(
    ("given", "said"), [(["--images", "2"], "a share"), (["--steps", "0"], "--steps is at least 1")]
)
def test_wrong_arguments_are_refused(
    cost: ModuleType, given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cost.arguments(given)
    assert said in capsys.readouterr().err


def test_texts_that_the_encoder_would_cut_are_refused(cost: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="reads at most 507 tokens"):
        made(cost, tmp_path, "--text-tokens", "600")
