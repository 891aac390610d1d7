"""An invertible affine map in front of a tokenizer: centring, scaling, standardising or PCA whitening."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from catalex.types import Floats

Normalisation = Literal["none", "centre", "standardise", "whiten"]


@dataclass(frozen=True)
class Normaliser:
    """``x -> (x - mean) @ forward`` and back. `forward` and `backward` are vectors ``(D,)`` (a scaling) or
    matrices.

    Attributes:
        mean: ``(D,)``.
        forward: ``(D,)`` or ``(D, P)``.
        backward: ``(D,)`` or ``(P, D)``.
    """

    mean: Tensor
    forward: Tensor
    backward: Tensor

    @classmethod
    def fit(cls, kind: Normalisation, vectors: Tensor, weights: Tensor, width: int | None = None) -> Self:
        """Learn the map from vectors ``(N, D)`` with weights ``(N,)``.

        Args:
            kind: "none"; "centre" subtracts the mean and divides by one overall standard deviation, which
                keeps all angles; "standardise" divides each of the D columns by its own; "whiten" rotates
                onto the principal components and gives each unit variance.
            vectors: What to learn from.
            weights: Weight of each vector.
            width: P, components kept by "whiten"; None keeps all D.
        """
        x, share = vectors.double(), (weights.double() / weights.double().sum())[:, None]
        ones = torch.ones(x.shape[1], dtype=torch.float64)
        if kind == "none":
            return cls._of(0 * ones, ones, ones)
        mean = (x * share).sum(0)
        variance = ((x - mean).square() * share).sum(0)
        if kind == "centre":
            scale = variance.mean().sqrt().clamp(min=1e-12) * ones
            return cls._of(mean, 1 / scale, scale)
        if kind == "standardise":
            scale = torch.where(variance > 0, variance.sqrt(), ones)
            return cls._of(mean, 1 / scale, scale)
        values, axes = torch.linalg.eigh(((x - mean) * share).T @ (x - mean))
        kept = torch.argsort(values, descending=True)[: width or len(values)]
        scale = values[kept].clamp(min=float(values.max()) * 1e-9 + 1e-30).sqrt()
        axes = axes[:, kept] * torch.sign(axes[:, kept].abs().max(0).values * axes[:, kept].sum(0) + 1e-30)
        return cls._of(mean, axes / scale, (axes * scale).T)

    @classmethod
    def _of(cls, mean: Tensor, forward: Tensor, backward: Tensor) -> Self:
        return cls(mean.float(), forward.float(), backward.float())

    def __call__(self, vectors: Tensor) -> Tensor:
        """``(N, P)`` normalised vectors of ``(N, D)``."""
        centred = vectors.float() - self.mean
        return centred * self.forward if self.forward.ndim == 1 else centred @ self.forward

    def invert(self, vectors: Tensor) -> Tensor:
        """``(N, D)`` vectors of normalised ``(N, P)``; exact but for rounding, or up to the dropped
        components."""
        return (vectors * self.backward if self.backward.ndim == 1 else vectors @ self.backward) + self.mean

    @property
    def width(self) -> int:
        """P, the width of a normalised vector."""
        return int(self.forward.shape[-1])

    def arrays(self) -> dict[str, Floats]:
        """The map as named arrays, for saving."""
        return {
            "normaliser.mean": self.mean.numpy(),
            "normaliser.forward": self.forward.numpy(),
            "normaliser.backward": self.backward.numpy(),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Self:
        """Read back what `arrays` gave."""
        names = ("normaliser.mean", "normaliser.forward", "normaliser.backward")
        return cls(*(torch.from_numpy(np.array(arrays[name])) for name in names))
