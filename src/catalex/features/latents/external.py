"""Autoencoders that the user brings: ``diffusers:<id or folder>`` and ``mar-kl16:<path>``.

Both have a posterior, a normal distribution a cell, from which training draws a sample each time (MAR, arXiv
2406.11838). Pixels are shifted from [0, 1] to [-1, 1]; latents are scaled to a spread of about one.
"""

from __future__ import annotations

import importlib
import math
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from catalex.artifacts import hash_array, hash_file, hash_json
from catalex.errors import CatalexError, user_error
from catalex.features.latents.base import Vae
from catalex.features.latents.kl16 import CHANNELS, WIDTH, Kl16

DIFFUSERS, MAR_KL16 = "diffusers:", "mar-kl16:"
"""Prefixes of the names in a recipe."""

MAR_SCALE = 0.2325
"""What MAR multiplies its latents with (arXiv 2406.11838, published code)."""

TRAINING_ONLY = ("loss.",)
"""Names in checkpoints that belong to the autoencoder's own training: perceptual loss and discriminator."""


class MarKl16(Vae):
    """MAR's KL-16 by path: 256 px to 16 x 16 tokens of 16 channels, UTGRec's own target.

    Supported: ``.ckpt``/``.pt``/``.pth`` (tensors only; with or without the outer key ``model``) and
    ``.safetensors``, with the module names of the latent-diffusion code, every tensor of the encoder and, if
    any of it is there, of the decoder. Other autoencoders of that family differ in shape and are refused.
    """

    channels, factor, parts = CHANNELS, 16, 2

    def __init__(self, path: Path, device: str = "cpu", *, width: int = WIDTH) -> None:
        """Load the weights; `width` is for tests with a smaller network.

        Raises:
            CatalexError: When the file is missing, unreadable, or of another architecture.
        """
        tensors = _tensors(path)
        self.decodes = any(name.startswith("decoder.") for name in tensors)
        with torch.device("meta"):
            self._model = Kl16(width=width, decoder=self.decodes)
        _load_strictly(self._model, tensors, path)
        self._model = self._model.float().eval().requires_grad_(False).to(device)
        self._fingerprint = f"mar-kl16-{hash_file(path)[:16]}"

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def encode(self, pixels: Tensor) -> Tensor:
        mean, log_variance = self._model.encode(2 * pixels - 1)
        return torch.stack([mean * MAR_SCALE, log_variance + 2 * math.log(MAR_SCALE)], 1)

    def decode(self, maps: Tensor) -> Tensor:
        return (self._model.decode(maps / MAR_SCALE) + 1) / 2


class DiffusersVae(Vae):
    """Any ``AutoencoderKL`` of the package diffusers, scaled and shifted as its own configuration says."""

    parts = 2

    def __init__(self, reference: str, place: str, device: str = "cpu") -> None:
        """Load the model: a folder, or an id that diffusers finds in its cache or downloads. When there is
        no ``config.json`` at the top, the subfolder ``vae`` of a pipeline is taken.

        Raises:
            CatalexError: When diffusers is missing, or the model cannot be had or is no such autoencoder.
        """
        model = _from_pretrained(reference, place)
        config = model.config
        self.channels = int(config.latent_channels)
        self.factor = 2 ** (len(config.block_out_channels) - 1)
        # latents = (z - shift) * scale: a number each, or one a channel where mean and spread are given
        scale = float(getattr(config, "scaling_factor", None) or 1.0)
        shift = getattr(config, "shift_factor", None) or 0.0
        means, spreads = (getattr(config, name, None) for name in ("latents_mean", "latents_std"))
        per_channel = (1, -1, 1, 1)
        self._shift = torch.tensor(means or shift, dtype=torch.float32).reshape(per_channel).to(device)
        self._scale = (scale / torch.tensor(spreads or 1.0)).reshape(per_channel).to(device)
        settings = [self._shift.flatten().tolist(), self._scale.flatten().tolist()]
        weights = {name: hash_array(value.float().numpy()) for name, value in model.state_dict().items()}
        name = Path(reference).name
        self._fingerprint = f"diffusers-{name}-{hash_json([settings, weights])[:16]}"
        self._model = model.float().eval().requires_grad_(False).to(device)

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def encode(self, pixels: Tensor) -> Tensor:
        posterior = self._model.encode(2 * pixels - 1).latent_dist
        mean = (posterior.mean - self._shift) * self._scale
        return torch.stack([mean, posterior.logvar + 2 * self._scale.log()], 1)

    def decode(self, maps: Tensor) -> Tensor:
        pixels: Tensor = self._model.decode(maps / self._scale + self._shift).sample
        return (pixels + 1) / 2


def _from_pretrained(reference: str, place: str) -> Any:
    """The model in float32."""
    try:
        diffusers = importlib.import_module("diffusers")
    except ImportError:
        raise user_error(
            f"image target '{DIFFUSERS}{reference}' needs the package diffusers",
            place=place,
            remedy="run: pip install diffusers",
        ) from None
    reasons = []
    for options in ({}, {"subfolder": "vae"}):
        try:
            return diffusers.AutoencoderKL.from_pretrained(
                reference, torch_dtype=torch.float32, use_safetensors=True, **options
            )
        except (OSError, ValueError, KeyError, RuntimeError, TypeError, SafetensorError) as error:
            reasons.append(
                str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else repr(error)
            )
    raise user_error(
        f"the autoencoder cannot be loaded ({reasons[0]})",
        place=place,
        value=reference,
        allowed="a folder or id with an AutoencoderKL in safetensors, at its top or in its subfolder 'vae'",
        remedy="check the name, or download the model first on a machine that is online",
    )


def _tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, without what only the autoencoder's own training needed."""
    if not path.is_file():
        raise user_error(
            "there is no such file",
            place=f"image target '{MAR_KL16}<path>'",
            value=str(path),
            remedy="name MAR's kl16 checkpoint",
        )
    try:
        if path.suffix == ".safetensors":
            found: Any = load_file(path)
        else:
            found = torch.load(path, weights_only=True, map_location="cpu")
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError) as error:
        reason = (
            str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        )
        raise user_error(
            f"the weights cannot be read ({reason})",
            place=path,
            allowed="a checkpoint that holds nothing but tensors, or a safetensors file",
            remedy="copy the file again, or convert it to safetensors",
        ) from None
    if isinstance(found, dict) and isinstance(found.get("model"), dict):
        found = found["model"]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise _other_architecture(path, "it is not a dictionary of tensors")
    return {name: value for name, value in found.items() if not name.startswith(TRAINING_ONLY)}


def _load_strictly(model: Kl16, tensors: dict[str, Tensor], path: Path) -> None:
    """Put `tensors` in place of the model's; every name and shape has to agree."""
    expected = model.state_dict()
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing:
        raise _other_architecture(path, f"{len(missing)} tensors are missing, the first is {missing[0]}")
    if unknown:
        raise _other_architecture(path, f"{len(unknown)} tensors are unknown, the first is {unknown[0]}")
    for name, value in tensors.items():
        if value.shape != expected[name].shape:
            shapes = f"{tuple(value.shape)} instead of {tuple(expected[name].shape)}"
            raise _other_architecture(path, f"{name} has shape {shapes}")
    model.load_state_dict(tensors, strict=True, assign=True)


def _other_architecture(path: Path, reason: str) -> CatalexError:
    return user_error(
        f"this is no KL-16 autoencoder of MAR: {reason}",
        place=path,
        remedy="use MAR's kl16 checkpoint, or another autoencoder through diffusers:<id or folder>",
    )
