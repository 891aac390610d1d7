"""Residual k-means: k-means on the vectors, then on what is left over, level after level. No gradient,
seconds.

The quantizer that GRID (2507.22224) and our own tests find at least as good as an RQ-VAE, and the plainest
shared
tokenizer: several domains are learned from jointly by pooling their vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from catalex.artifacts import read_arrays, write_arrays
from catalex.options import Options
from catalex.progress import Track
from catalex.quantize import (
    in_blocks,
    kmeans,
    reconstruct,
    residual,
    residual_distances,
    residual_encode,
    residual_encoder,
)
from catalex.tokenizers.base import CodeSpace, LatentTokenizer, ResidualPart, TokenizerDomain
from catalex.tokenizers.folder import Training, read_tokenizer, write_tokenizer
from catalex.tokenizers.normalise import Normalisation, Normaliser
from catalex.tokenizers.training_set import (
    Balance,
    check_domains,
    checked_rows,
    pooled,
    untrained,
)
from catalex.types import JSON, Codes, Floats


class RQKMeansOptions(Options):
    """Settings of residual k-means."""

    levels: int = Field(3, ge=1, le=8)
    """L, codes an item. TIGER: 3."""
    codebook_size: int = Field(256, ge=2, le=65536)
    """K, codes a level. TIGER: 256."""
    iterations: int = Field(50, ge=0)
    """Largest number of Lloyd iterations a level; ours, k-means stops earlier when nothing moves."""
    init: Literal["k-means++", "sample"] = "k-means++"
    """Start of k-means (Arthur and Vassilvitskii 2007)."""
    normalise: Normalisation = "none"
    """What happens to the vectors first. k-means is indifferent to centring; content encoders give unit
    vectors."""
    components: int | None = Field(None, ge=1)
    """Principal components kept by `normalise: whiten`; None keeps all."""
    balance: Balance = "proportional"
    """Weight of the domains: "proportional" to their items, or "equal"."""


class RQKMeans(LatentTokenizer):
    """L codebooks of K code vectors in the space of the (normalised) content vectors."""

    Options: ClassVar[type[Options]] = RQKMeansOptions
    name: ClassVar[str] = "rqkmeans"

    def __init__(self, options: RQKMeansOptions) -> None:
        self.options = options
        self.codebooks: list[Tensor] = []
        self.normaliser: Normaliser | None = None
        self.training: Training | None = None

    @property
    def space(self) -> CodeSpace:
        """L levels of K codes, each with its own codebook."""
        return CodeSpace.of(self.options.levels, self.options.codebook_size)

    def fit(
        self, domains: Sequence[TokenizerDomain], *, seed: int, device: str, partial: Path | None = None
    ) -> Mapping[str, JSON]:
        """Cluster level by level; every finished level is kept in `partial`.

        Returns:
            ``inertia_<l>``: curve of k-means at level l; ``error``: mean squared error after each level,
            relative to the variance of the vectors; never increasing; ``utilisation``: share of codes used at
            each level.
        """
        options = self.options
        width = check_domains(domains, options.codebook_size)
        vectors, weights = pooled(domains, options.balance)
        self.training = Training.of(domains, width)
        self.normaliser = Normaliser.fit(options.normalise, vectors, weights, options.components)
        rest = self.normaliser(vectors).to(device)
        weights = weights.to(device)
        spread = float(((rest - rest.mean(0)).square().sum(1) * weights).sum())
        self.codebooks, facts, errors, used = [], {}, [], []
        with Track("residual k-means", options.levels, "levels") as track:
            for level in range(options.levels):
                codebook, inertia = self._level(rest, weights, seed + level, partial, level)
                codes = residual_encode(rest, [codebook])
                rest = residual(rest, codes, [codebook])
                self.codebooks.append(codebook.cpu())
                errors.append(float((rest.square().sum(1) * weights).sum()) / max(spread, 1e-30))
                used.append(len(torch.unique(codes)) / options.codebook_size)
                facts[f"inertia_{level}"] = inertia
                track.advance(note=f"error {errors[-1]:.3f}")
        return {**facts, "error": errors, "utilisation": used}

    def _level(
        self, rest: Tensor, weights: Tensor, seed: int, partial: Path | None, level: int
    ) -> tuple[Tensor, list[float]]:
        """Codebook ``(K, D)`` and inertia curve of one level, from `partial` when it was finished before."""
        file = partial / f"level_{level}.safetensors" if partial is not None else None
        if file is not None and file.is_file():
            arrays = read_arrays(file)
            return torch.from_numpy(arrays["codebook"]).to(rest.device), arrays["inertia"].tolist()
        found = kmeans(
            rest,
            self.options.codebook_size,
            seed=seed,
            iterations=self.options.iterations,
            init=self.options.init,
            weights=weights,
        )
        if file is not None:
            write_arrays(
                file, {"codebook": found.centroids.cpu().numpy(), "inertia": np.array(found.inertia)}
            )
        return found.centroids, found.inertia

    def encode(self, vectors: Floats) -> Codes:
        """Codes ``(N, L)`` of vectors ``(N, D)``."""
        rows, normaliser = self._rows(vectors), self._normaliser()
        encode = residual_encoder(self.codebooks)
        codes = in_blocks(lambda block: encode(normaliser(block)), rows)
        return codes.numpy().astype(np.int32)

    def distances(self, vectors: Floats, prefix: Codes) -> Floats:
        """``(N, K)`` squared distances at level l to each code, given the prefix ``(N, l)``."""
        rows, normaliser = self._rows(vectors), self._normaliser()
        before = torch.from_numpy(np.array(prefix, dtype=np.int64))
        found = in_blocks(
            lambda block, codes: residual_distances(normaliser(block), codes, self.codebooks), rows, before
        )
        distances: Floats = found.numpy()
        return distances

    def decode(self, codes: Codes) -> Floats:
        """``(N, D)`` sum of the code vectors, with the normalisation undone."""
        normaliser = self._normaliser()
        chosen = torch.from_numpy(np.array(codes, dtype=np.int64))
        found = in_blocks(lambda block: normaliser.invert(reconstruct(block, self.codebooks)), chosen)
        vectors: Floats = found.numpy()
        return vectors

    def latents(self, vectors: Floats) -> Tensor:
        """``(N, P)`` normalised vectors."""
        rows, normaliser = self._rows(vectors), self._normaliser()
        return in_blocks(normaliser, rows)

    def from_latents(self, latents: Tensor) -> Tensor:
        """``(N, D)`` vectors, with the normalisation undone."""
        return in_blocks(self._normaliser().invert, latents)

    def part_for(self, latents: Tensor) -> ResidualPart:
        """All codebooks, whatever the domain."""
        return ResidualPart(tuple(self.codebooks), (None,) * self.options.levels)

    def save(self, folder: Path) -> None:
        """Write ``config.json`` and the codebooks."""
        arrays = {f"codebook_{level}": codebook.numpy() for level, codebook in enumerate(self.codebooks)}
        normaliser = self._normaliser()
        assert self.training is not None
        write_tokenizer(folder, self.name, self.options, self.training, arrays | normaliser.arrays())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a folder that `save` wrote."""
        options, training, arrays = read_tokenizer(folder, cls.name)
        tokenizer = cls(RQKMeansOptions.parse(options, str(folder)))
        tokenizer.training = training
        tokenizer.normaliser = Normaliser.from_arrays(arrays)
        tokenizer.codebooks = [
            torch.from_numpy(arrays[f"codebook_{level}"]) for level in range(tokenizer.options.levels)
        ]
        return tokenizer

    def _normaliser(self) -> Normaliser:
        if self.normaliser is None:
            raise untrained(self.name)
        return self.normaliser

    def _rows(self, vectors: Floats) -> Tensor:
        self._normaliser()
        assert self.training is not None
        return checked_rows(vectors, self.training.width)
