"""An invertible affine map in front of a tokenizer: centring, scaling, standardising or PCA whitening."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from catalex.types import Floats

Normalisation = Literal["none", "centre", "standardise", "whiten"]
PIECE = 8192
"""Vectors that are held in float64 at once."""


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
        share = weights.double() / weights.double().sum()
        ones = torch.ones(vectors.shape[1], dtype=torch.float64)
        if kind == "none":
            return cls._of(0 * ones, ones, ones)
        mean = sum((s @ x.double() for x, s in _pieces(vectors, share)), 0 * ones)
        if kind == "whiten":
            return cls._whitening(mean, vectors, share, width)
        variance = sum((s @ (x.double() - mean).square() for x, s in _pieces(vectors, share)), 0 * ones)
        if kind == "centre":
            scale = variance.mean().sqrt().clamp(min=1e-12) * ones
            return cls._of(mean, 1 / scale, scale)
        scale = torch.where(variance > 0, variance.sqrt(), ones)
        return cls._of(mean, 1 / scale, scale)

    @classmethod
    def _whitening(cls, mean: Tensor, vectors: Tensor, share: Tensor, width: int | None) -> Self:
        covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
        for x, s in _pieces(vectors, share):
            centred = x.double() - mean
            covariance += (centred * s[:, None]).T @ centred
        values, axes = torch.linalg.eigh(covariance)
        kept = torch.argsort(values, descending=True)[: width or len(values)]
        scale = values[kept].clamp(min=float(values.max()) * 1e-9 + 1e-30).sqrt()
        axes = axes[:, kept] * torch.sign(axes[:, kept].abs().max(0).values * axes[:, kept].sum(0) + 1e-30)
        return cls._of(mean, axes / scale, (axes * scale).T)

    @classmethod
    def _of(cls, mean: Tensor, forward: Tensor, backward: Tensor) -> Self:
        return cls(mean.float(), forward.float(), backward.float())

    def __call__(self, vectors: Tensor) -> Tensor:
        """``(N, P)`` normalised vectors of ``(N, D)``."""
        if self._changes_nothing:
            return vectors.float()
        centred = vectors.float() - self.mean
        return centred * self.forward if self.forward.ndim == 1 else centred @ self.forward

    @cached_property
    def _changes_nothing(self) -> bool:
        return self.forward.ndim == 1 and not bool(self.mean.any()) and bool((self.forward == 1).all())

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


def _pieces(vectors: Tensor, share: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows of vectors ``(N, D)`` with those of share ``(N,)``, so many at a time that doubles of them
    take little memory."""
    for start in range(0, len(vectors), PIECE):
        yield vectors[start : start + PIECE], share[start : start + PIECE]
