"""taef2: a small autoencoder distilled from that of FLUX.2 (MIT licence): 32 channels, 1/8 of the side.

Two files of 2.7 MB, named by the user; 16 x 16 tokens at 128 px. Its latents have a mean of about zero and a
spread of 0.8 to 0.95, so they serve as regression target unscaled, and it has no posterior to sample from.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from catalex.artifacts import hash_array, hash_file, hash_json
from catalex.errors import CatalexError, user_error
from catalex.features.latents.base import LatentOptions, Vae

ENVIRONMENT = "CATALEX_TAEF2"
"""Environment variable that names the folder of the weights when the recipe does not."""

WIDTH, CHANNELS = 64, 32

FILE_SHA256 = {
    "encoder": "10a4e1021e89d7551eaf161352da8dbd0b1aa83872ae28b150c1df1ce2f147b6",
    "decoder": "0a44a31e1ae59eb9dbf9359d24942fd3ef5928162c1800d97a28c61d51be0ab5",
}
"""Of the published ``taef2_encoder.pth`` and ``taef2_decoder.pth``."""

TENSORS_SHA256 = {
    "encoder": "f946a0f3492a331007ee0b046999041b5745ec29c4e31429871b888077483041",
    "decoder": "7054b9da83b305fdbaed84b76b5043156b15864f1e14658c42d1fd5ae267393d",
}
"""Of the same tensors by name (`hash_tensors`), for those who keep them as safetensors."""


class Taef2Options(LatentOptions):
    """Where the weights are."""

    folder: str | None = None
    """Folder with ``taef2_encoder`` and ``taef2_decoder``, each as ``.pth`` (as published) or
    ``.safetensors``. By default the environment variable CATALEX_TAEF2."""


class Block(nn.Module):
    """Three convolutions around an identity; with `pooling`, statistics of the whole map are added."""

    def __init__(self, *, pooling: bool = False) -> None:
        super().__init__()
        self.conv = nn.Sequential(_conv(), nn.ReLU(), _conv(), nn.ReLU(), _conv())
        self.pool: nn.Sequential | None = None
        if pooling:  # group normalisation is what sees the whole image: each group's mean and spread
            wide = 4 * WIDTH
            self.pool = nn.Sequential(
                nn.Conv2d(WIDTH, wide, 1, bias=False),
                nn.GroupNorm(4, wide),
                nn.ReLU(),
                nn.Conv2d(wide, WIDTH, 1, bias=False),
            )

    def forward(self, maps: Tensor) -> Tensor:
        """Maps ``(B, 64, h, w)`` to maps of the same shape."""
        if self.pool is not None:
            maps = maps + self.pool(maps)
        result: Tensor = torch.relu(maps + self.conv(maps))
        return result


class SoftClamp(nn.Module):
    """Latents to the range (-3, 3) that the decoder was trained on."""

    def forward(self, latents: Tensor) -> Tensor:
        return 3 * torch.tanh(latents / 3)


def make_encoder() -> nn.Sequential:
    """Pixels ``(B, 3, S, S)`` in [0, 1] to latents ``(B, 32, S/8, S/8)``; names as in the published file."""
    stages: list[nn.Module] = []
    for pooling in (False, False, True):
        stages += [_conv(stride=2, bias=False), *(Block(pooling=pooling) for _ in range(3))]
    return nn.Sequential(_conv(3, WIDTH), Block(), *stages, _conv(WIDTH, CHANNELS))


def make_decoder() -> nn.Sequential:
    """Latents ``(B, 32, h, w)`` to pixels ``(B, 3, 8h, 8w)``, about in [0, 1]; published names."""
    stages: list[nn.Module] = []
    for pooling in (True, False, False):
        stages += [
            *(Block(pooling=pooling) for _ in range(3)),
            nn.Upsample(scale_factor=2),
            _conv(bias=False),
        ]
    return nn.Sequential(SoftClamp(), _conv(CHANNELS, WIDTH), nn.ReLU(), *stages, Block(), _conv(WIDTH, 3))


class Taef2(Vae):
    """The frozen pair of encoder and decoder, float32."""

    channels, factor = CHANNELS, 8

    def __init__(self, options: Taef2Options, place: str = "image target", device: str = "cpu") -> None:
        """Load and check both halves.

        Raises:
            CatalexError: When there is no folder, a file is missing, or a file is not the published one.
        """
        folder = _folder(options.folder, place)
        self._encoder = _load(make_encoder(), folder, "encoder", device)
        self._decoder = _load(make_decoder(), folder, "decoder", device)

    @property
    def fingerprint(self) -> str:
        return f"taef2-{FILE_SHA256['encoder'][:8]}"

    def encode(self, pixels: Tensor) -> Tensor:
        maps: Tensor = self._encoder(pixels)
        return maps.unsqueeze(1)

    def decode(self, maps: Tensor) -> Tensor:
        pixels: Tensor = self._decoder(maps)
        return pixels


def hash_tensors(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of named tensors in half precision, whatever file and precision they were stored in."""
    return hash_json({name: hash_array(value.half().numpy()) for name, value in tensors.items()})


def _conv(inputs: int = WIDTH, outputs: int = WIDTH, *, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=bias)


def _folder(named: str | None, place: str) -> Path:
    """The folder that the option names, else the environment variable."""
    found = named or os.environ.get(ENVIRONMENT)
    if not found:
        raise user_error(
            "image target 'taef2' does not know where its weights are",
            place=f"{place}.folder",
            remedy="set folder (or the environment variable CATALEX_TAEF2) to a folder with "
            "taef2_encoder.pth and taef2_decoder.pth of madebyollin/taesd",
        )
    folder = Path(found).expanduser()
    if not folder.is_dir():
        raise user_error(
            "there is no such folder",
            place=f"{place}.folder" if named else f"environment variable {ENVIRONMENT}",
            value=found,
            remedy="name the folder that holds taef2_encoder.pth and taef2_decoder.pth",
        )
    return folder


def _load(half: nn.Sequential, folder: Path, name: str, device: str) -> nn.Sequential:
    """One half with its checked weights, frozen."""
    published, converted = folder / f"taef2_{name}.pth", folder / f"taef2_{name}.safetensors"
    if published.is_file():
        found = hash_file(published)
        if found != FILE_SHA256[name]:
            raise _foreign(published, found, FILE_SHA256[name])
        tensors = torch.load(published, weights_only=True, map_location="cpu")
    elif converted.is_file():
        try:
            tensors = load_file(converted)
        except (SafetensorError, ValueError) as error:
            raise user_error(
                f"the file is damaged ({error})", place=converted, remedy="copy it again"
            ) from None
        found = hash_tensors(tensors)
        if found != TENSORS_SHA256[name]:
            raise _foreign(converted, found, f"tensors with {TENSORS_SHA256[name]}")
    else:
        raise user_error(
            f"the {name} of taef2 is missing",
            place=folder,
            allowed=f"{published.name} or {converted.name}",
            remedy="put the published file there (madebyollin/taesd)",
        )
    half.load_state_dict(tensors, strict=True)
    return half.float().eval().requires_grad_(False).to(device)


def _foreign(path: Path, found: str, expected: str) -> CatalexError:
    return user_error(
        "the weights are not the published taef2",
        place=path,
        value=found,
        allowed=f"sha256 {expected}",
        remedy="fetch the file again from madebyollin/taesd",
    )
