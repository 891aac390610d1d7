"""Autoencoders that users bring: MAR's KL-16 by path with random weights, diffusers with a stand-in."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

pytest.importorskip("PIL", reason="Pillow is not installed")

from catalex.errors import CatalexError
from catalex.features.latents import ImageTarget, LatentOptions, kl16, make_image_target
from catalex.features.latents.external import MAR_SCALE, MarKl16
from catalex.features.latents.kl16 import Kl16
from unit.features.tiny import picture

SMALL = 32
"""Width of the small network of these tests (128 in the published one)."""


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    """A random state dict of the small network."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Kl16(width=SMALL).state_dict()


# --- MAR's KL-16 --------------------------------------------------------------------------------------------


def published_names() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published checkpoint, written out level by level."""
    found: dict[str, tuple[int, ...]] = {}

    def conv(name: str, inputs: int, outputs: int, kernel: int = 3) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = (outputs, inputs, kernel, kernel), (outputs,)

    def norm(name: str, width: int) -> None:
        found[f"{name}.weight"] = found[f"{name}.bias"] = (width,)

    def residual(name: str, inputs: int, outputs: int) -> None:
        norm(f"{name}.norm1", inputs)
        conv(f"{name}.conv1", inputs, outputs)
        norm(f"{name}.norm2", outputs)
        conv(f"{name}.conv2", outputs, outputs)
        if inputs != outputs:
            conv(f"{name}.nin_shortcut", inputs, outputs, 1)

    def attention(name: str, width: int) -> None:
        norm(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.{part}", width, width, 1)

    def middle(name: str) -> None:
        residual(f"{name}.block_1", 512, 512)
        attention(f"{name}.attn_1", 512)
        residual(f"{name}.block_2", 512, 512)

    conv("encoder.conv_in", 3, 128)
    for level, (inputs, outputs) in enumerate([(128, 128), (128, 128), (128, 256), (256, 256), (256, 512)]):
        residual(f"encoder.down.{level}.block.0", inputs, outputs)
        residual(f"encoder.down.{level}.block.1", outputs, outputs)
        if level < 4:
            conv(f"encoder.down.{level}.downsample.conv", outputs, outputs)
    for block in (0, 1):
        attention(f"encoder.down.4.attn.{block}", 512)
    middle("encoder.mid")
    norm("encoder.norm_out", 512)
    conv("encoder.conv_out", 512, 32)
    conv("quant_conv", 32, 32, 1)
    conv("post_quant_conv", 16, 16, 1)
    conv("decoder.conv_in", 16, 512)
    middle("decoder.mid")
    for level, (inputs, outputs) in enumerate([(128, 128), (256, 128), (256, 256), (512, 256), (512, 512)]):
        residual(f"decoder.up.{level}.block.0", inputs, outputs)
        for block in (1, 2):
            residual(f"decoder.up.{level}.block.{block}", outputs, outputs)
        if level:
            conv(f"decoder.up.{level}.upsample.conv", outputs, outputs)
    norm("decoder.norm_out", 128)
    conv("decoder.conv_out", 128, 3)
    return found


def test_names_and_shapes_are_those_of_the_published_checkpoint() -> None:
    with torch.device("meta"):
        model = Kl16()
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == published_names()


def test_attention_is_one_head_over_all_cells() -> None:
    torch.manual_seed(0)
    layer, x = kl16.Attention(32), torch.randn(2, 32, 3, 4)
    normed = layer.norm(x)
    q, k, v = (part(normed).flatten(2) for part in (layer.q, layer.k, layer.v))  # (B, C, cells)
    expected = torch.zeros(2, 32, 12)
    for image in range(2):
        for cell in range(12):
            scores = torch.stack([q[image, :, cell] @ k[image, :, other] for other in range(12)]) / 32**0.5
            expected[image, :, cell] = v[image] @ scores.softmax(0)
    torch.testing.assert_close(layer(x), x + layer.proj_out(expected.view_as(x)))


def test_downsampling_pads_on_the_right_and_below_only() -> None:
    layer = kl16.Downsample(1)
    nn.init.ones_(layer.conv.weight)
    nn.init.zeros_(layer.conv.bias)  # type: ignore[arg-type]
    found = layer(torch.arange(16.0).view(1, 1, 4, 4))[0, 0]
    assert found.tolist() == [[45, 39], [66, 50]]  # 3 x 3 sums from corners (0, 0), (0, 2), (2, 0), (2, 2)


@pytest.mark.parametrize("form", ["model.ckpt", "plain.pth", "plain.safetensors"])
def test_a_saved_state_dict_loads_strictly_and_scales(
    form: str, tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / form
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        extra = {"loss.discriminator.weight": torch.ones(2)}
        torch.save({"model": tensors | extra} if form == "model.ckpt" else tensors, path)
    vae = MarKl16(path, width=SMALL)
    original = Kl16(width=SMALL)
    original.load_state_dict(tensors)
    pixels = torch.rand(2, 3, 32, 32)
    latents = vae.encode(pixels)
    assert latents.shape == (2, 2, 16, 2, 2)
    with torch.no_grad():
        mean, log_variance = original.quant_conv(original.encoder(2 * pixels - 1)).chunk(2, 1)
        spread = (0.5 * log_variance).exp()
        torch.testing.assert_close(latents[:, 0], mean * MAR_SCALE)
        torch.testing.assert_close((0.5 * latents[:, 1]).exp(), spread * MAR_SCALE)
        shown = (original.decode(mean) + 1) / 2
        torch.testing.assert_close(vae.decode(latents[:, 0]), shown, atol=1e-4, rtol=1e-4)


def test_a_checkpoint_without_decoder_encodes_only(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    encoder = {name: v for name, v in tensors.items() if name.startswith(("encoder.", "quant_conv."))}
    torch.save(encoder, tmp_path / "half.pth")
    target = ImageTarget(MarKl16(tmp_path / "half.pth", width=SMALL), LatentOptions(size=32))
    index = target.index([picture((200, 0, 0)), None])
    assert index.batch(np.arange(2), torch.Generator().manual_seed(0)).shape == (2, 4, 16)
    with pytest.raises(CatalexError, match="no decoder"):
        target.decode(torch.zeros(1, 4, 16))


def test_training_draws_samples_of_the_posterior(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(tensors, tmp_path / "all.pth")
    vae = MarKl16(tmp_path / "all.pth", width=SMALL)
    target = ImageTarget(vae, LatentOptions(size=32, flip=False))
    index = target.index([picture((200, 0, 0))])
    mean, log_variance = vae.encode(target.pixels(picture((200, 0, 0)))[None])[0].flatten(2).mT
    drawn = index.batch(np.zeros(2000, np.int64), torch.Generator().manual_seed(0))
    spread = (0.5 * log_variance).exp()
    torch.testing.assert_close((drawn.mean(0) - mean) / spread, torch.zeros(4, 16), atol=0.12, rtol=0)
    torch.testing.assert_close(drawn.std(0) / spread, torch.ones(4, 16), atol=0.1, rtol=0)


def test_checkpoints_of_other_models_are_refused(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "kl16.ckpt"
    wrong: list[tuple[Any, str]] = [
        (
            {k: v for k, v in tensors.items() if k != "quant_conv.bias"},
            "missing, the first is quant_conv.bias",
        ),
        (tensors | {"encoder.extra": torch.ones(1)}, r"unknown, the first is encoder\.extra"),
        (
            tensors | {"quant_conv.bias": torch.ones(8)},
            r"quant_conv\.bias has shape \(8,\) instead of \(32,\)",
        ),
        ([1, 2], "not a dictionary of tensors"),
        ({"epoch": 3}, "not a dictionary of tensors"),
        ({"model": SimpleNamespace(x=1)}, "cannot be read"),
    ]
    for content, message in wrong:
        torch.save(content, path)
        with pytest.raises(CatalexError, match=message):
            MarKl16(path, width=SMALL)
    path.write_bytes(b"no checkpoint at all")
    with pytest.raises(CatalexError, match="cannot be read"):
        make_image_target({"name": f"mar-kl16:{path}"}, "target")
    with pytest.raises(CatalexError, match="there is no such file"):
        make_image_target({"name": f"mar-kl16:{tmp_path / 'gone.ckpt'}"}, "target")


@pytest.mark.slow
def test_the_full_network_gives_256_tokens_of_16_channels(tmp_path: Path) -> None:
    torch.save({"model": Kl16().state_dict()}, tmp_path / "kl16.ckpt")
    target = make_image_target({"name": f"mar-kl16:{tmp_path / 'kl16.ckpt'}", "flip": False}, "target")
    assert (target.size, target.tokens, target.channels) == (256, 256, 16)
    index = target.index([picture((0, 200, 0))])
    latents = index.batch(np.arange(1), torch.Generator().manual_seed(0))
    assert latents.shape == (1, 256, 16)
    assert target.decode(latents).shape == (1, 3, 256, 256)


# --- diffusers, with a stand-in for the package -------------------------------------------------------------


class FakeKl(nn.Module):
    """Speaks like diffusers' AutoencoderKL; a latent is the mean of an 8 x 8 patch, spread 0.5."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.config = SimpleNamespace(latent_channels=3, block_out_channels=[8, 8, 8, 8], **settings)

    def encode(self, pixels: Tensor) -> SimpleNamespace:
        mean = nn.functional.avg_pool2d(pixels, 8) * self.weight
        return SimpleNamespace(
            latent_dist=SimpleNamespace(mean=mean, logvar=torch.full_like(mean, math.log(0.25)))
        )

    def decode(self, latents: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=nn.functional.interpolate(latents, scale_factor=8))


def install_fake(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> list[tuple[str, dict[str, Any]]]:
    """A package `diffusers` whose only model sits in the subfolder "vae"; returns the calls it gets."""
    calls: list[tuple[str, dict[str, Any]]] = []

    class AutoencoderKL:
        @staticmethod
        def from_pretrained(reference: str, **options: Any) -> FakeKl:
            calls.append((reference, options))
            if options.get("subfolder") != "vae" or reference == "gone":
                raise OSError(f"{reference} has no config.json\nlong explanation")
            return FakeKl(**settings)

    monkeypatch.setitem(sys.modules, "diffusers", SimpleNamespace(AutoencoderKL=AutoencoderKL))
    return calls


@pytest.mark.parametrize(
    ("settings", "shift", "scale"),
    [
        ({"scaling_factor": 0.18215}, 0.0, 0.18215),
        ({"scaling_factor": 0.3611, "shift_factor": 0.1159}, 0.1159, 0.3611),
        ({"scaling_factor": 0.5, "shift_factor": None, "latents_mean": None, "latents_std": None}, 0.0, 0.5),
        (
            {"scaling_factor": 0.5, "latents_mean": [1.0, 2, 3], "latents_std": [2.0, 4, 8]},
            [1, 2, 3],
            [1 / 4, 1 / 8, 1 / 16],
        ),
        ({}, 0.0, 1.0),
    ],
)
def test_latents_are_scaled_as_the_model_says(
    settings: dict[str, Any], shift: Any, scale: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = install_fake(monkeypatch, **settings)
    target = make_image_target({"name": "diffusers:org/model", "flip": False}, "target")
    assert [reference for reference, _ in calls] == ["org/model", "org/model"]
    assert all(options["use_safetensors"] for _, options in calls)
    assert (target.size, target.tokens, target.channels) == (128, 256, 3)
    index = target.index([picture((200, 0, 0))])
    raw = nn.functional.avg_pool2d(2 * target.pixels(picture((200, 0, 0)))[None] - 1, 8).flatten(2).mT
    mean = (raw - torch.tensor(shift)) * torch.tensor(scale)
    torch.testing.assert_close(index.batch(np.arange(1)), mean.float(), atol=2e-3, rtol=1e-3)
    drawn = index.batch(np.zeros(500, np.int64), torch.Generator().manual_seed(0))
    spread = (drawn - mean).std((0, 1)) / 0.5
    torch.testing.assert_close(spread, torch.tensor(scale).expand(3).float(), rtol=0.02, atol=0)
    shown = nn.functional.interpolate(raw.mT.unflatten(2, (16, 16)), scale_factor=8)
    torch.testing.assert_close(target.decode(mean.float()), (shown + 1) / 2, atol=1e-4, rtol=0)


def test_a_model_that_diffusers_cannot_load(monkeypatch: pytest.MonkeyPatch) -> None:
    install_fake(monkeypatch)
    with pytest.raises(CatalexError, match=r"target\.name.*cannot be loaded \(gone has no config\.json\)"):
        make_image_target({"name": "diffusers:gone"}, "target")


def test_without_diffusers_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(CatalexError, match=r"needs the package diffusers.*pip install diffusers"):
        make_image_target({"name": "diffusers:org/model"}, "target")


def test_settings_and_weights_are_part_of_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for settings in ({}, {"scaling_factor": 0.5}, {"shift_factor": 0.5}):
        install_fake(monkeypatch, **settings)
        found.add(make_image_target({"name": "diffusers:org/model"}, "target").fingerprint)
    assert len(found) == 3
