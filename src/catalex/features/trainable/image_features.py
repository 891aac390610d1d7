"""Images of N items as a few frozen EfficientNet-Lite0 vectors each, computed once before training.

I image tokens an item (1 or 4), M items that have a readable image, F = 1280 feature channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from catalex.artifacts import hash_json
from catalex.features.base import ItemContent
from catalex.features.efficientnet import EfficientNetLite0, EfficientNetLite0Options, _load_model
from catalex.types import Bools, Floats, Ints

CHANNELS = 1280
"""F, channels of the last feature map."""

SIDES = {1: 1, 4: 2}
"""Side of the square grid that I tokens form."""


class GridFeatures(EfficientNetLite0):
    """The last 7x7 feature map averaged to a grid: ``(N, I * 1280)``, each of the I parts L2-normalised.

    One token is the vector of the encoder ``efficientnet-lite0``. Four are the quarters of the picture (the
    middle row and column of the map belong to both sides).
    """

    def __init__(self, image_tokens: int, device: str = "cpu") -> None:
        super().__init__(EfficientNetLite0Options(), device)
        self.image_tokens = image_tokens

    @property
    def fingerprint(self) -> str:
        return f"grid-{hash_json([super().fingerprint, self.image_tokens])[:16]}"

    @property
    def width(self) -> int:
        return self.image_tokens * CHANNELS

    @torch.inference_mode()
    def _forward(self, pixels: Floats) -> Floats:
        """Parts ``(B, I * 1280)`` of pixels ``(B, 3, 224, 224)``."""
        if self._model is None:
            self._model = _load_model(self._weights, self.device)
        images = torch.from_numpy(pixels).to(self.device).contiguous(memory_format=torch.channels_last)
        grid = F.adaptive_avg_pool2d(
            self._model.extract_features(images).float(), SIDES[self.image_tokens]
        )  # (B, F, side, side)
        parts: Floats = F.normalize(grid.flatten(2).transpose(1, 2), dim=-1).flatten(1).cpu().numpy()
        return parts


@dataclass(frozen=True)
class ImageFeatures:
    """Image vectors of N items; those without an image take no memory.

    Attributes:
        vectors: ``(M, I, F)`` float16: the components of unit vectors, of which 3 digits matter.
        slots: ``(N,)`` row of `vectors` that belongs to an item, -1 without a readable image.
        unreadable: Images that could not be read.
    """

    vectors: NDArray[np.float16]
    slots: Ints
    unreadable: int

    @property
    def present(self) -> Bools:
        """``(N,)`` whether an item has a readable image."""
        return self.slots >= 0

    def batch(self, rows: Ints) -> tuple[Floats, Bools]:
        """Vectors ``(B, I, F)``, zero where there is none, and where there is one ``(B,)``."""
        slots = self.slots[rows]
        present: Bools = slots >= 0
        vectors = np.zeros((len(rows), *self.vectors.shape[1:]), np.float32)
        vectors[present] = self.vectors[slots[present]]
        return vectors, present


class ImageCollector:
    """Grows an `ImageFeatures` block by block."""

    def __init__(self, image_tokens: int, device: str = "cpu") -> None:
        self.encoder = GridFeatures(image_tokens, device)
        self._vectors: list[NDArray[Any]] = [np.zeros((0, image_tokens, CHANNELS), np.float16)]
        self._present: list[Bools] = [np.zeros(0, np.bool_)]

    def add(self, items: Sequence[ItemContent]) -> None:
        found = self.encoder.encode(items).reshape(len(items), self.encoder.image_tokens, CHANNELS)
        present: Bools = np.asarray(found.any((1, 2)))
        self._vectors.append(found[present].astype(np.float16))
        self._present.append(present)

    def finish(self) -> ImageFeatures:
        present = np.concatenate(self._present)
        slots = np.where(present, np.cumsum(present) - 1, -1)
        return ImageFeatures(np.concatenate(self._vectors), slots, self.encoder.failures)
