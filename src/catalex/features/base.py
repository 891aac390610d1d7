"""The interface of content encoders: items in, one vector an item out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from catalex.options import Options
from catalex.types import Floats


@dataclass(frozen=True)
class ItemContent:
    """What an encoder may look at: one item's text and, if wanted and present, its image bytes."""

    text: str
    image: bytes | None = None


class ContentEncoder(ABC):
    """A frozen encoder. Every entry of the table of encoders passes the same behaviour kit.

    Attributes:
        needs_images: Whether `ItemContent.image` has to be filled in.
        corpus_dependent: Whether vectors depend on the other items (tf-idf); such encoders are fitted on the
            catalogue first and their vectors are cached by the whole corpus instead of by item.
    """

    Options: ClassVar[type[Options]]
    needs_images: ClassVar[bool] = False
    corpus_dependent: ClassVar[bool] = False

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Names weights and settings; part of every cache key and of every table that quotes the encoder."""

    @property
    @abstractmethod
    def width(self) -> int:
        """D, the width of a vector."""

    def fit(self, items: Sequence[ItemContent]) -> None:  # noqa: B027 - encoders with fixed weights learn nothing
        """Learn from a catalogue. Only corpus-dependent encoders do anything here."""

    @abstractmethod
    def encode(self, items: Sequence[ItemContent], advance: Callable[[int], None] | None = None) -> Floats:
        """Vectors ``(N, D)`` float32, L2-normalised, row i for `items[i]`, however items are batched.

        `advance` is called with the number of items finished since the last call.
        """
