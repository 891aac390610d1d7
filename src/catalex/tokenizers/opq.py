"""Optimized product quantization of content vectors: M independent codes an item, as VQ-Rec reads them.

VQ-Rec (Hou et al. 2023, arXiv 2210.12316) turns text vectors into 32 codes of 256 with Faiss
(``OPQ32,IVF1,PQ32x8``); here the rotation and the codebooks are our own (`catalex.quantize.opq`). The codes
are no prefix code: a later one refines nothing that an earlier one began, so such identifiers suit models
that read all of an item's codes at once better than models that write them from left to right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from catalex.artifacts import read_arrays, write_arrays
from catalex.errors import user_error
from catalex.options import Options
from catalex.progress import Track
from catalex.quantize import in_blocks
from catalex.quantize.opq import ProductQuantizer, assign, product_round, product_start
from catalex.tokenizers.base import CodeSpace, Tokenizer, TokenizerDomain
from catalex.tokenizers.folder import Training, read_tokenizer, write_tokenizer
from catalex.tokenizers.training_set import (
    Balance,
    check_domains,
    checked_rows,
    pooled,
    untrained,
)
from catalex.types import JSON, Codes, Floats

STATE_FILE = "quantizer.safetensors"


class OPQOptions(Options):
    """Settings of optimized product quantization."""

    levels: int = Field(32, ge=1, le=256)
    """M, slices and codes of an item (VQ-Rec: 32); divides the width of the vectors."""
    codebook_size: int = Field(256, ge=2, le=65536)
    """K, codes of a slice (VQ-Rec: 256)."""
    rounds: int = Field(20, ge=0)
    """Rounds of rotation and codebooks; Faiss makes 50 from a random rotation, ours begins at the principal
    axes."""
    iterations: int = Field(4, ge=1)
    """Lloyd iterations a round (Faiss: 4)."""
    balance: Balance = "proportional"
    """Weight of the domains: "proportional" to their items, or "equal"."""


class OPQ(Tokenizer):
    """A rotation of the content vectors and M codebooks of K code vectors for its slices."""

    Options: ClassVar[type[Options]] = OPQOptions
    name: ClassVar[str] = "opq"

    def __init__(self, options: OPQOptions) -> None:
        self.options = options
        self.quantizer: ProductQuantizer | None = None
        self.training: Training | None = None

    @property
    def space(self) -> CodeSpace:
        """M levels of K codes, each with its own codebook."""
        return CodeSpace.of(self.options.levels, self.options.codebook_size)

    def fit(
        self, domains: Sequence[TokenizerDomain], *, seed: int, device: str, partial: Path | None = None
    ) -> Mapping[str, JSON]:
        """Learn rotation and codebooks on the pooled vectors; every finished round is kept in `partial`.

        Returns:
            ``error``: mean squared error after each round, relative to the variance of the vectors; never
            increasing; ``utilisation``: share of codes used at each level.
        """
        o = self.options
        width = check_domains(domains, o.codebook_size)
        if width % o.levels:
            raise user_error(
                "the width of the vectors cannot be cut into that many slices",
                place="tokenizer.levels",
                value=o.levels,
                allowed=f"a divisor of {width}",
                remedy="set levels to one of its divisors",
            )
        found, weights = pooled(domains, o.balance)
        vectors, weights = found.to(device), weights.to(device)
        self.training = Training.of(domains, width)
        state, errors = _restored(partial, device)
        with Track("product quantization", o.rounds + 1, "rounds", start=len(errors)) as track:
            while len(errors) <= o.rounds:
                if state is None:
                    state = product_start(vectors, o.levels, o.codebook_size, seed=seed, weights=weights)
                    errors.append(_error(vectors, weights, state))
                else:
                    state, error = product_round(vectors, state, iterations=o.iterations, weights=weights)
                    errors.append(error)
                _keep(partial, state, errors)
                track.advance(note=f"squared error {errors[-1]:.4g}")
        assert state is not None
        codes = assign(state.rotate(vectors), state.codebooks)
        spread = float(((vectors - state.mean).square().sum(1) * weights).sum() / weights.sum())
        self.quantizer = state.to("cpu")
        used = [len(torch.unique(codes[:, level])) / o.codebook_size for level in range(o.levels)]
        return {"error": [error / max(spread, 1e-30) for error in errors], "utilisation": used}

    def encode(self, vectors: Floats) -> Codes:
        """Codes ``(N, M)`` of vectors ``(N, D)``."""
        quantizer = self._quantizer()
        codes = in_blocks(quantizer.encode, self._rows(vectors))
        return codes.numpy().astype(np.int32)

    def distances(self, vectors: Floats, prefix: Codes) -> Floats:
        """``(N, K)`` squared distances of the next slice; the codes before it have no influence on it."""
        quantizer, level = self._quantizer(), prefix.shape[1]
        found = in_blocks(lambda block: quantizer.distances(block, level), self._rows(vectors))
        distances: Floats = found.contiguous().numpy()
        return distances

    def decode(self, codes: Codes) -> Floats:
        """``(N, D)`` code vectors, slice beside slice, rotated back."""
        quantizer = self._quantizer()
        found = in_blocks(quantizer.decode, torch.from_numpy(np.array(codes, dtype=np.int64)))
        vectors: Floats = found.numpy()
        return vectors

    def save(self, folder: Path) -> None:
        """Write ``config.json``, rotation and codebooks."""
        arrays = _arrays(self._quantizer())
        assert self.training is not None
        write_tokenizer(folder, self.name, self.options, self.training, arrays)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a folder that `save` wrote."""
        options, training, arrays = read_tokenizer(folder, cls.name)
        tokenizer = cls(OPQOptions.parse(options, str(folder)))
        tokenizer.training = training
        tokenizer.quantizer = _quantizer(arrays)
        return tokenizer

    def _quantizer(self) -> ProductQuantizer:
        if self.quantizer is None:
            raise untrained(self.name)
        return self.quantizer

    def _rows(self, vectors: Floats) -> Tensor:
        assert self.training is not None
        return checked_rows(vectors, self.training.width)


# --- states of a training -----------------------------------------------------------------------------------


def _arrays(found: ProductQuantizer) -> dict[str, Floats]:
    parts = {"mean": found.mean, "rotation": found.rotation, "codebooks": found.codebooks}
    return {name: value.cpu().numpy() for name, value in parts.items()}


def _quantizer(arrays: Mapping[str, Floats]) -> ProductQuantizer:
    return ProductQuantizer(
        *(torch.from_numpy(np.array(arrays[name])) for name in ("mean", "rotation", "codebooks"))
    )


def _keep(partial: Path | None, state: ProductQuantizer, errors: Sequence[float]) -> None:
    if partial is not None:
        write_arrays(partial / STATE_FILE, {**_arrays(state), "errors": np.array(errors, np.float64)})


def _restored(partial: Path | None, device: str) -> tuple[ProductQuantizer | None, list[float]]:
    """What a killed training had found, and its errors; None and none without one."""
    if partial is None or not (partial / STATE_FILE).is_file():
        return None, []
    arrays = read_arrays(partial / STATE_FILE)
    return _quantizer(arrays).to(device), arrays["errors"].tolist()


def _error(vectors: Tensor, weights: Tensor, state: ProductQuantizer) -> float:
    left = (vectors - state.decode(state.encode(vectors))).square().sum(1).double()
    return float((left * weights).sum() / weights.sum())
