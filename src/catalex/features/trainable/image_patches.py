"""Images as the patches that vision towers of the Qwen-VL family read, with Pillow and NumPy alone.

An image is resized so that both sides are multiples of patch x merge pixels, normalised, and cut into patches
of C x temporal x patch x patch values; merge x merge neighbours follow each other and become one token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from catalex.data.images.decoding import decode_image
from catalex.errors import CatalexError
from catalex.features.base import ItemContent
from catalex.features.trainable.base import Batch
from catalex.types import Floats, Ints

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Normalisation of Qwen2-VL and Qwen2.5-VL, inherited from CLIP, when the checkpoint states none."""

LARGEST_RATIO = 200
"""Longer images are squeezed to this ratio of sides, which the family's own preprocessing refuses."""

BICUBIC = 3
"""Pillow's number of the filter that the family uses."""

_VERIFIED_AT_ONCE = 64


@dataclass(frozen=True)
class PatchSettings:
    """How a checkpoint cuts images.

    Attributes:
        patch: Side of a patch in pixels.
        merge: Patches a side of one token.
        temporal: Frames a patch; a still image is repeated.
        min_pixels, max_pixels: Range of width x height after resizing.
    """

    patch: int = 14
    merge: int = 2
    temporal: int = 2
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    min_pixels: int = 56 * 56
    max_pixels: int = 256 * 28 * 28

    @property
    def factor(self) -> int:
        """Side of a token in pixels."""
        return self.patch * self.merge


def fitted_size(size: tuple[int, int], settings: PatchSettings) -> tuple[int, int]:
    """Width and height to resize to: multiples of the token's side, pixels in range, ratio nearly kept.

    Args:
        size: Width and height of the image.
        settings: Of the checkpoint.
    """
    width, height = size
    factor = settings.factor
    width, height = min(width, LARGEST_RATIO * height), min(height, LARGEST_RATIO * width)
    across, down = round(width / factor) * factor, round(height / factor) * factor
    if across * down > settings.max_pixels:
        shrink = math.sqrt(width * height / settings.max_pixels)
        across = max(factor, math.floor(width / shrink / factor) * factor)
        down = max(factor, math.floor(height / shrink / factor) * factor)
    elif across * down < settings.min_pixels:
        grow = math.sqrt(settings.min_pixels / (width * height))
        across = math.ceil(width * grow / factor) * factor
        down = math.ceil(height * grow / factor) * factor
    # of a sliver one side was raised to a whole token, which takes the other beyond the limit
    most = max(1, settings.max_pixels // factor**2)
    if across > down:
        return min(across, most // (down // factor) * factor), down
    return across, min(down, most // (across // factor) * factor)


def cut(image: Any, settings: PatchSettings) -> tuple[Floats, tuple[int, int]]:
    """Patches ``(h * w, C * temporal * patch * patch)`` of an RGB Pillow image, and h, w in patches."""
    p, m = settings.patch, settings.merge
    resized = image.resize(fitted_size(image.size, settings), resample=BICUBIC)
    mean, std = np.asarray(settings.mean, np.float32), np.asarray(settings.std, np.float32)
    pixels = (np.asarray(resized, np.float32) / np.float32(255) - mean) / std  # (h p, w p, C)
    h, w = pixels.shape[0] // p, pixels.shape[1] // p
    tiles = pixels.reshape(h // m, m, p, w // m, m, p, 3)
    tiles = tiles.transpose(0, 3, 1, 4, 6, 2, 5)  # (h/m, w/m, m, m, C, p, p)
    frames = np.repeat(tiles[:, :, :, :, :, None], settings.temporal, axis=5)
    return np.ascontiguousarray(frames.reshape(h * w, -1)), (h, w)


class PatchImages:
    """The images of N items, kept as the bytes of their files and cut anew for each batch.

    Patches of a catalogue would need a megabyte an item. A batch gets ``pixels`` (all patches of its images,
    one after the other) and ``grids`` ``(M, 3)`` (frames, patch rows and columns of each of its M images), or
    neither when no item in it has an image.
    """

    def __init__(
        self,
        items: Sequence[ItemContent],
        settings: PatchSettings,
        advance: Callable[[int], None] | None = None,
    ) -> None:
        self._settings = settings
        self._files = [item.image for item in items]
        self._patches = np.zeros((len(items), 2), np.int64)
        self.present = np.zeros(len(items), np.bool_)
        self.unreadable = 0
        for row, data in enumerate(self._files):
            if data is not None:
                self._look_at(row, data)
            if advance is not None and ((row + 1) % _VERIFIED_AT_ONCE == 0 or row + 1 == len(items)):
                advance(row % _VERIFIED_AT_ONCE + 1)

    def grid(self, row: int) -> tuple[int, int]:
        height, width = self._patches[row] // self._settings.merge
        return int(height), int(width)

    def tensors(self, rows: Ints) -> Batch:
        shown = [int(row) for row in rows if self.present[row]]
        if not shown:
            return {}
        cuts = [cut(self._decode(self._files[row] or b""), self._settings) for row in shown]
        return {
            "pixels": torch.from_numpy(np.concatenate([patches for patches, _ in cuts])),
            "grids": torch.tensor([[1, *size] for _, size in cuts]),
        }

    def _look_at(self, row: int, data: bytes) -> None:
        """Decode once: only whole images become part of a prompt."""
        try:
            image = self._decode(data)
        except CatalexError:
            self.unreadable += 1
            self._files[row] = None
            return
        across, down = fitted_size(image.size, self._settings)
        self._patches[row] = down // self._settings.patch, across // self._settings.patch
        self.present[row] = True

    def _decode(self, data: bytes) -> Any:
        # large photographs are decoded at a fraction of their size, still twice as sharp as needed
        return decode_image(data, size=4 * math.isqrt(self._settings.max_pixels))
