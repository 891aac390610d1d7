"""The interface of item tokenizers: content vectors in, codes out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field
from torch import Tensor

from catalex.data.histories import Histories
from catalex.features.base import ItemContent
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
        content: Text and image of the N items, for tokenizers that read them (`ContentTokenizer`); images are
            fetched when an item is asked for.
        collaborative: ``(N, d)`` item vectors that a sequential recommender learned from the training
            histories, for tokenizers that ask for them (`Tokenizer.collaborative`).
    """

    name: str
    vectors: Floats
    training: Histories
    split_id: str
    content: Sequence[ItemContent] | None = None
    collaborative: Floats | None = None


class CollaborativeOptions(Options):
    """Where the collaborative vectors of a tokenizer come from."""

    folders: dict[str, Path] = Field(default_factory=dict)
    """Folders of trained SASRec recommenders by the name of their domain, in place of training one. Each must
    have been trained on the split of the run, and be as wide as the tokenizer asks."""
    recommender: dict[str, Any] = Field(default_factory=dict)
    """Options of the SASRec that is trained for a domain without a folder; its width is set by the
    tokenizer."""


@dataclass(frozen=True)
class CollaborativeNeed:
    """That a tokenizer reads `TokenizerDomain.collaborative`.

    Attributes:
        width: d of the vectors.
        source: Where they come from.
    """

    width: int
    source: CollaborativeOptions


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

    @property
    def order(self) -> tuple[int, ...]:
        """Positions of an identifier in the order in which its codes are chosen; normally from left to right.

        UniTok chooses the expert first and writes it last: ``(4, 0, 1, 2, 3)``.
        """
        return tuple(range(self.space.levels))

    def expect(self, domains: Sequence[str]) -> None:  # noqa: B027 - most tokenizers have nothing to learn here
        """Told before training the names of the domains that it will learn from; `space` may depend on them.

        Raises:
            CatalexError: When an option names a domain that is not among them.
        """

    @property
    def collaborative(self) -> CollaborativeNeed | None:
        """What `TokenizerDomain.collaborative` of the domains to learn from has to be; None for tokenizers
        that read content alone."""
        return None

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
        """``(N, K)`` squared distances of each vector to every code of the next level, given those chosen
        before.

        `prefix` is ``(N, l)`` with 0 <= l < L, the first l codes in `order`; the result belongs to position
        ``order[l]``. ``argmin`` of the result at each step in turn gives `encode`. Conflict handling is built
        on this alone.
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


class ContentTokenizer(Tokenizer):
    """A tokenizer with an encoder of its own, trained from raw content (UTGRec).

    `represent` takes the place of content vectors: its rows are what `encode` and `distances` read and what
    `decode` gives back. Of several processes all call `fit` and `fine_tune`, which share the training among
    them; other tokenizers are fitted by the main process alone.
    """

    @property
    @abstractmethod
    def reads_images(self) -> bool:
        """Whether `ItemContent.image` has to be filled in."""

    @abstractmethod
    def represent(self, content: Sequence[ItemContent], vectors: Floats, *, name: str, device: str) -> Floats:
        """Rows ``(N, D')`` for items, to be quantized.

        Args:
            content: Text and image of each item.
            vectors: ``(N, D)`` frozen content vectors of the same items, for encoders that start from them.
            name: Name of the domain, for progress.
            device: "cpu" or "cuda".
        """

    @abstractmethod
    def fine_tune(
        self,
        domain: TokenizerDomain,
        method: str,
        *,
        seed: int,
        device: str,
        partial: Path | None = None,
    ) -> tuple[Self, Mapping[str, JSON]]:
        """A tokenizer for one domain, trained on from this one, which stays as it is; and its curves."""


@dataclass(frozen=True)
class ResidualPart:
    """What quantizes the latent vectors of one domain.

    Attributes:
        codebooks: R codebooks ``(K_r, d)`` of residual quantization, in `Tokenizer.order`.
        fixed: For each of the L positions of the identifier the one code that all items of the domain have
            there (UniTok's expert), or None where a residual code stands. R of them are None.
    """

    codebooks: tuple[Tensor, ...]
    fixed: tuple[int | None, ...]


class LatentTokenizer(Tokenizer):
    """A tokenizer that residually quantizes a latent vector ``(d,)``. Adaptation to a new domain and the
    measurement of dependence build on this."""

    @abstractmethod
    def latents(self, vectors: Floats) -> Tensor:
        """``(N, d)`` float32 latent vectors of vectors ``(N, D)``, independent of batching, without
        gradient."""

    @abstractmethod
    def from_latents(self, latents: Tensor) -> Tensor:
        """``(N, D)`` vectors of (quantized) latent vectors ``(N, d)``."""

    def check_adaptable(self, method: str) -> None:
        """Asked before training: refuse a method of adaptation that these options rule out.

        Raises:
            CatalexError: When they do.
        """

    @abstractmethod
    def part_for(self, latents: Tensor) -> ResidualPart:
        """The codebooks for a domain with these latent vectors ``(N, d)``: all there are, or those of the
        expert that most of them are sent to."""
