"""The interface of item tokenizers: content vectors in, codes out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from catalex.data.histories import Histories
from catalex.options import Options
from catalex.types import JSON, Codes, Floats


@dataclass(frozen=True)
class TokenizerDomain:
    """What a tokenizer may learn from one domain. Training interactions only.

    Attributes:
        name: Name of the domain.
        vectors: ``(N, D)`` content vectors of the whole catalogue.
        training: Training histories, for tokenizers that use co-occurrence.
        split_id: The split those histories belong to.
    """

    name: str
    vectors: Floats
    training: Histories
    split_id: str


@dataclass(frozen=True)
class CodeSpace:
    """The codes a tokenizer emits.

    Attributes:
        sizes: K_l for each of the L levels.
        groups: Codebook of each level; levels with equal numbers share one codebook, hence one range of
            tokens (UTGRec: ``(0, 1, 1)``).
    """

    sizes: tuple[int, ...]
    groups: tuple[int, ...]

    @classmethod
    def of(cls, levels: int, size: int) -> Self:
        """L levels of `size` codes, each with a codebook of its own."""
        return cls((size,) * levels, tuple(range(levels)))

    @property
    def levels(self) -> int:
        """L."""
        return len(self.sizes)


class Tokenizer(ABC):
    """Trained once on any number of domains, then frozen. Every entry of the table passes one behaviour kit.

    Distances and codes are computed in float32, in blocks, independent of how items are batched.
    """

    Options: ClassVar[type[Options]]

    @property
    @abstractmethod
    def space(self) -> CodeSpace:
        """Levels and codebook sizes; known before training."""

    @abstractmethod
    def fit(
        self, domains: Sequence[TokenizerDomain], *, seed: int, device: str, partial: Path | None = None
    ) -> Mapping[str, JSON]:
        """Train. Returns curves and facts for the report (lists of numbers by name).

        Args:
            domains: One or more domains, trained jointly.
            seed: Fixes the result on one device.
            device: "cpu" or "cuda".
            partial: Folder for checkpoints. A killed run that is started again with the same folder ends at
                the result of an uninterrupted one.

        Raises:
            CatalexError: When there are too few vectors for the codebooks, or vectors hold NaN or differ in
                width.
        """

    @abstractmethod
    def encode(self, vectors: Floats) -> Codes:
        """Codes ``(N, L)`` of vectors ``(N, D)``: the nearest code vector at every level."""

    @abstractmethod
    def distances(self, vectors: Floats, prefix: Codes) -> Floats:
        """``(N, K_l)`` squared distances of each vector to every code of level l, given its codes before l.

        `prefix` is ``(N, l)`` with 0 <= l < L. ``argmin`` of the result at each level in turn gives `encode`.
        Conflict handling is built on this alone.
        """

    @abstractmethod
    def decode(self, codes: Codes) -> Floats:
        """``(N, D)`` reconstruction of the vectors from codes ``(N, L)``."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write ``config.json`` and safetensors into `folder`."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            CatalexError: When a file is missing, damaged or of another version.
        """
