"""The interface of trainable content encoders: items in, L hidden vectors an item out, with gradient.

UTGRec (arXiv 2504.04405, section 2.2) trains its encoder together with the codebooks. What an encoder is
made of
is its own affair: a small text transformer, a multimodal language model, or heads on frozen vectors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from catalex.features.base import ItemContent
from catalex.options import Options
from catalex.types import Bools, Floats, Ints

Batch = Mapping[str, Tensor]
"""What one forward pass reads; every tensor has B as its first axis unless the encoder says otherwise."""


@dataclass(frozen=True)
class TextTargets:
    """The texts of N items as the encoder's own tokens, which the text decoder has to reconstruct.

    Attributes:
        tokens: ``(sum T_i,)`` token ids, one item after the other, specials left out.
        offsets: ``(N + 1,)`` item i owns ``tokens[offsets[i]:offsets[i + 1]]``; empty for an item without
        text.
    """

    tokens: Ints
    offsets: Ints


class ContentIndex(ABC):
    """N items, read and tokenized once, from which batches are made again and again."""

    has_text: Bools
    """``(N,)`` whether an item has any text."""
    has_image: Bools
    """``(N,)`` whether an item has an image that the encoder could read."""
    unreadable: int
    """Images that could not be read; their items count as having none."""
    text: TextTargets | None
    """Targets of the text decoder; None for an encoder that knows no words."""

    @abstractmethod
    def __len__(self) -> int:
        """N."""

    @abstractmethod
    def batch(self, rows: Ints) -> Batch:
        """The inputs of items `rows` ``(B,)``, on the CPU. Padding is only as wide as the longest of them
        needs."""


class TrainableEncoder(nn.Module, ABC):
    """Content to hidden states ``(B, L, d)``. Every entry of the table passes one behaviour kit.

    The result for an item does not depend on the others of its batch (to rounding), nor on padding. An item
    may lack its image, its text, or both.

    Attributes:
        levels: L, code tokens an item.
        width: d, width of a hidden state.
        reads_images: Whether `ItemContent.image` has to be filled in.
        reads_vectors: Whether `index` needs the frozen content vectors.
    """

    Options: ClassVar[type[Options]]
    levels: int
    width: int
    reads_images: bool = False
    reads_vectors: bool = False

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Names the weights it starts from and its settings."""

    @abstractmethod
    def index(
        self,
        items: Sequence[ItemContent],
        vectors: Floats | None = None,
        advance: Callable[[int], None] | None = None,
    ) -> ContentIndex:
        """Read N items once: tokens, pixels or features.

        Args:
            items: Text and image of each; a bad image is counted and left out, never an error.
            vectors: ``(N, D)`` frozen content vectors, for encoders that read them.
            advance: Called with the number of items finished since the last call.
        """

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """Hidden states ``(B, L, d)`` of the L code tokens."""

    @property
    def vocabulary(self) -> Tensor | None:
        """``(V, d)`` input embeddings of the words, from which the text decoder's head starts; None without
        words."""
        return None

    def saved(self) -> Mapping[str, Tensor]:
        """What has to be stored to load this encoder again: the trained weights, without frozen ones that
        come
        from a package or a checkpoint of their own."""
        return dict(self.state_dict())

    @abstractmethod
    def restore(self, weights: Mapping[str, Tensor]) -> None:
        """Take what `saved` gave.

        Raises:
            CatalexError: When a tensor is missing, unknown or of another shape.
        """
