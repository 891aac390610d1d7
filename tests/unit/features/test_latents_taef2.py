"""taef2: its architecture by the names and shapes of its files, real posters, and files that are not it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

pytest.importorskip("PIL", reason="Pillow is not installed")

from catalex.data.images import ImageStore
from catalex.errors import CatalexError
from catalex.features.latents import make_image_target, taef2
from catalex.features.latents.taef2 import ENVIRONMENT, Taef2, Taef2Options

DEVELOPMENT = Path(__file__).resolve().parents[3] / "../shared"
WEIGHTS, POSTERS = DEVELOPMENT / "models", DEVELOPMENT / "data/movies/images.parquet"
with_weights = pytest.mark.skipif(not WEIGHTS.is_dir(), reason="the development data is not here")


def block_names(index: int, *, pooling: bool) -> dict[str, tuple[int, ...]]:
    """Names and shapes of one block, written out as they stand in the published files."""
    names: dict[str, tuple[int, ...]] = {}
    for layer in (0, 2, 4):
        names |= {f"{index}.conv.{layer}.weight": (64, 64, 3, 3), f"{index}.conv.{layer}.bias": (64,)}
    if pooling:
        names |= {f"{index}.pool.0.weight": (256, 64, 1, 1), f"{index}.pool.3.weight": (64, 256, 1, 1)}
        names |= {f"{index}.pool.1.weight": (256,), f"{index}.pool.1.bias": (256,)}
    return names


def test_names_and_shapes_are_those_of_the_published_files() -> None:
    encoder = {"0.weight": (64, 3, 3, 3), "0.bias": (64,), "14.weight": (32, 64, 3, 3), "14.bias": (32,)}
    encoder |= {f"{index}.weight": (64, 64, 3, 3) for index in (2, 6, 10)}
    for index in (1, 3, 4, 5, 7, 8, 9, 11, 12, 13):
        encoder |= block_names(index, pooling=index > 10)
    decoder = {"1.weight": (64, 32, 3, 3), "1.bias": (64,), "19.weight": (3, 64, 3, 3), "19.bias": (3,)}
    decoder |= {f"{index}.weight": (64, 64, 3, 3) for index in (7, 12, 17)}
    for index in (3, 4, 5, 8, 9, 10, 13, 14, 15, 18):
        decoder |= block_names(index, pooling=index < 6)
    for half, expected in ((taef2.make_encoder(), encoder), (taef2.make_decoder(), decoder)):
        assert {name: tuple(value.shape) for name, value in half.state_dict().items()} == expected


def test_a_block_is_what_it_is_described_as() -> None:
    """Only with pooling does a change in one corner of the map reach the other."""
    torch.manual_seed(0)
    maps = torch.rand(1, 64, 16, 16)
    changed = maps.clone()
    changed[..., 0, 0] += 1
    for pooling in (False, True):
        block = taef2.Block(pooling=pooling)
        moved = (block(maps) - block(changed))[..., -1, -1].abs().max() > 0
        assert moved == pooling
        entering = maps
        if block.pool is not None:
            wide = torch.nn.functional.conv2d(maps, block.pool[0].weight)
            groups = wide.view(4, 64 * 256)  # normalised over a group's channels and all cells
            normed = (groups - groups.mean(1, keepdim=True)) / (groups.var(1, unbiased=False) + 1e-5).sqrt()[
                :, None
            ]
            entering = maps + torch.nn.functional.conv2d(normed.view_as(wide).relu(), block.pool[3].weight)
        change = entering
        for layer in (0, 2, 4):
            convolution = block.conv[layer]
            change = torch.nn.functional.conv2d(change, convolution.weight, convolution.bias, padding=1)
            change = change.relu() if layer < 4 else change
        torch.testing.assert_close(block(maps), (entering + change).relu(), atol=1e-4, rtol=1e-4)


@with_weights
@pytest.mark.skipif(not POSTERS.is_file(), reason="the development data is not here")
def test_posters_of_the_development_data_survive() -> None:
    """PSNR of the reconstruction at 128 px; scaling the latents by a tenth either way must cost quality."""
    target = make_image_target({"name": "taef2", "folder": str(WEIGHTS), "flip": False}, "target")
    assert (target.size, target.tokens, target.channels) == (128, 256, 32)
    store = ImageStore(POSTERS)
    files = [store.get(int(item)) for item in store.ids[::900]]
    latents = target.index(files).batch(np.arange(len(files)))
    original = torch.stack([target.pixels(file) for file in files if file is not None])

    def psnr(latents: Tensor) -> float:
        error = (target.decode(latents) - original).square().mean((1, 2, 3))
        return float((-10 * error.log10()).mean())

    assert 25.5 < psnr(latents) < 30
    assert psnr(latents) > max(psnr(0.9 * latents), psnr(1.1 * latents)) + 0.5
    assert abs(latents.mean()) < 0.15
    assert 0.8 < latents.std() < 1.0


@with_weights
def test_safetensors_in_any_precision_are_the_same_weights(tmp_path: Path) -> None:
    for name, precision in (("encoder", torch.float16), ("decoder", torch.float32)):
        tensors = torch.load(WEIGHTS / f"taef2_{name}.pth", weights_only=True)
        save_file(
            {key: value.to(precision) for key, value in tensors.items()},
            tmp_path / f"taef2_{name}.safetensors",
        )
    converted, published = (Taef2(Taef2Options(folder=str(folder))) for folder in (tmp_path, WEIGHTS))
    pixels = torch.rand(1, 3, 32, 32)
    assert torch.equal(converted.encode(pixels), published.encode(pixels))
    assert torch.equal(converted.decode(torch.ones(1, 32, 4, 4)), published.decode(torch.ones(1, 32, 4, 4)))
    assert converted.fingerprint == published.fingerprint


@with_weights
def test_the_environment_names_the_folder_when_the_recipe_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(WEIGHTS))
    assert make_image_target({"name": "taef2"}, "target").tokens == 256


def test_without_a_folder_the_message_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    with pytest.raises(
        CatalexError, match=r"target\.folder.*where its weights are.*CATALEX_TAEF2.*taef2_encoder"
    ):
        make_image_target({"name": "taef2"}, "target")
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "gone"))
    with pytest.raises(CatalexError, match="environment variable CATALEX_TAEF2: there is no such folder"):
        make_image_target({"name": "taef2"}, "target")


def test_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    block = {"name": "taef2", "folder": str(tmp_path)}
    with pytest.raises(CatalexError, match=r"the encoder of taef2 is missing.*taef2_encoder\.pth"):
        make_image_target(block, "target")
    (tmp_path / "taef2_encoder.safetensors").write_bytes(b"not tensors")
    with pytest.raises(CatalexError, match=r"taef2_encoder\.safetensors: the file is damaged"):
        make_image_target(block, "target")
    save_file(taef2.make_encoder().state_dict(), tmp_path / "taef2_encoder.safetensors")
    with pytest.raises(CatalexError, match=r"not the published taef2.*allowed: sha256 tensors with f946a0f"):
        make_image_target(block, "target")
    torch.save(taef2.make_encoder().state_dict(), tmp_path / "taef2_encoder.pth")
    with pytest.raises(CatalexError, match=r"taef2_encoder\.pth: the weights are not the published taef2"):
        make_image_target(block, "target")


@with_weights
def test_a_missing_decoder_is_noticed_before_any_work(tmp_path: Path) -> None:
    shutil.copy(WEIGHTS / "taef2_encoder.pth", tmp_path)
    with pytest.raises(CatalexError, match="the decoder of taef2 is missing"):
        make_image_target({"name": "taef2", "folder": str(tmp_path)}, "target")
