"""`LatentIndex`: the latents of N items, computed once, from which every training batch is drawn."""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from torch import Generator, Tensor

from catalex.types import Bools, Ints


class LatentIndex:
    """Latents of the M items that have an image, kept as float16.

    Attributes:
        present: ``(N,)`` whether an item has an image that could be read.
        unreadable: Images that could not be read; their items count as having none.
    """

    def __init__(
        self, present: Bools, unreadable: int, means: Tensor, log_variances: Tensor | None = None
    ) -> None:
        """Keep the latents.

        Args:
            present: ``(N,)`` with M of them true.
            unreadable: Images that could not be read.
            means: ``(M, ways, N_v, C)`` of the present items in order; way 1 is the mirrored image.
            log_variances: The same shape, of the posterior; None for an autoencoder without one.
        """
        assert len(means) == present.sum(), "one latent for each present item"
        self.present, self.unreadable = present, unreadable
        self._means, self._log_variances = means, log_variances
        self._slots: Ints = np.where(present, np.cumsum(present) - 1, 0).astype(np.int64)

    def __len__(self) -> int:
        """N."""
        return len(self.present)

    def to(self, device: str | torch.device) -> Self:
        """Keep the latents on `device` from now on; returns the same index."""
        self._means = self._means.to(device)
        if self._log_variances is not None:
            self._log_variances = self._log_variances.to(device)
        return self

    def batch(
        self, rows: Ints, generator: Generator | None = None, device: str | torch.device | None = None
    ) -> Tensor:
        """Latents ``(B, N_v, C)`` float32 of items `rows` ``(B,)``; zeros for an item without image.

        Args:
            rows: Items, in any order, repeated or not.
            generator: Draws, for each row, whether the image is mirrored and the posterior sample. What is
                drawn depends on B alone, not on which items have images. None: upright, and the mean.
            device: Where the result goes; by default where the latents are kept.
        """
        place = self._means.device
        _, ways, tokens, channels = self._means.shape
        shape = (len(rows), tokens, channels)
        way = torch.zeros(len(rows), dtype=torch.int64)
        noise = None
        if generator is not None:
            if ways == 2:
                way = torch.randint(2, (len(rows),), generator=generator, device=generator.device)
            if self._log_variances is not None:
                noise = torch.randn(shape, generator=generator, device=generator.device)
        if not len(self._means):
            return torch.zeros(shape, device=device or place)
        slot, way = torch.from_numpy(self._slots[rows]).to(place), way.to(place)
        latents = self._means[slot, way].float()
        if noise is not None and self._log_variances is not None:
            latents += (0.5 * self._log_variances[slot, way].float()).exp() * noise.to(place)
        latents *= torch.from_numpy(self.present[rows]).to(place)[:, None, None]
        return latents.to(device or place)
