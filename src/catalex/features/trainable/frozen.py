"""The trainable encoder ``frozen``: L linear heads on content vectors that another encoder computed.

For catalogues of which only embeddings exist. N items, D content vector, L levels, d width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from catalex.artifacts import hash_json
from catalex.errors import user_error
from catalex.features.base import ItemContent
from catalex.features.trainable.base import Batch, ContentIndex, TrainableEncoder
from catalex.features.trainable.weights import take_weights
from catalex.options import Options, Positive
from catalex.types import Floats, Ints

_REVISION = 1  # raise when the starting weights change


class FrozenOptions(Options):
    """Size of the heads."""

    width: Positive = 384
    """d, width of a hidden state. Ours: the width of MiniLM, so that what follows ``mini`` and ``frozen`` has
    one size."""


class VectorIndex(ContentIndex):
    """N frozen vectors. `has_image` is False everywhere: this encoder looks at no image itself."""

    text = None
    unreadable = 0

    def __init__(self, items: Sequence[ItemContent], vectors: Floats) -> None:
        self.vectors = vectors
        self.has_text = np.array([bool(item.text.strip()) for item in items], np.bool_)
        self.has_image = np.zeros(len(items), np.bool_)

    def __len__(self) -> int:
        return len(self.vectors)

    def batch(self, rows: Ints) -> Batch:
        """``vectors`` ``(B, D)``, which are also what a `VectorDecoder` reconstructs."""
        return {"vectors": torch.from_numpy(self.vectors[rows])}


class FrozenEncoder(TrainableEncoder):
    """Hidden state of level l = ``W_l v + b_l`` of the content vector v: ``(B, L, d)``.

    Each ``W_l`` begins as another random matrix with orthonormal rows (columns when d > D), so at the start
    every level sees v undistorted (d >= D) or a random projection of it, and no two levels see the same. It
    is scaled so that the components of a hidden state have a mean square of about 1 for unit vectors: the
    projection behind the encoder expects inputs of that size. Without content (zero vector) the result is
    b_l.
    """

    Options = FrozenOptions
    reads_vectors = True

    def __init__(self, options: FrozenOptions, *, levels: int, seed: int, vectors_width: int) -> None:
        super().__init__()
        self.options, self.levels, self.width = options, levels, options.width
        self.vectors_width, self.seed = vectors_width, seed
        generator = torch.Generator().manual_seed(seed)
        self.heads = nn.Parameter(
            torch.stack([_isometry(options.width, vectors_width, generator) for _ in range(levels)])
        )  # (L, d, D)
        self.biases = nn.Parameter(torch.zeros(levels, options.width))

    @property
    def fingerprint(self) -> str:
        seen = [_REVISION, self.options.model_dump(), self.levels, self.vectors_width, self.seed]
        return f"frozen-{hash_json(seen)[:16]}"

    def index(
        self,
        items: Sequence[ItemContent],
        vectors: Floats | None = None,
        advance: Callable[[int], None] | None = None,
    ) -> VectorIndex:
        """Keep the vectors ``(N, D)``.

        Raises:
            CatalexError: When there are none, or not one finite vector of width D for each item.
        """
        allowed = f"({len(items)}, {self.vectors_width}), all finite"
        if vectors is None or vectors.shape != (len(items), self.vectors_width):
            raise user_error(
                "encoder 'frozen' needs a content vector for every item",
                value=None if vectors is None else vectors.shape,
                allowed=allowed,
                remedy="embed the domain with the encoder that the tokenizer was trained on",
            )
        if not np.isfinite(vectors).all():
            raise user_error(
                f"the content vector of item {int(np.argmin(np.isfinite(vectors).all(1)))} is not finite",
                allowed=allowed,
                remedy="repair the vectors, or embed the domain again",
            )
        if advance is not None:
            advance(len(items))
        return VectorIndex(items, np.ascontiguousarray(vectors, np.float32))

    def forward(self, batch: Batch) -> Tensor:
        states = torch.einsum("bi,loi->blo", batch["vectors"], self.heads)  # i = D in, o = d out
        return states.float() + self.biases

    def restore(self, weights: Mapping[str, Tensor]) -> None:
        take_weights(self.state_dict(), weights, "frozen")


def _isometry(width: int, inputs: int, generator: torch.Generator) -> Tensor:
    """A random ``(width, inputs)`` matrix with orthonormal rows or columns, times the longer side's root."""
    longer, shorter = max(width, inputs), min(width, inputs)
    basis, upper = torch.linalg.qr(torch.randn(longer, shorter, generator=generator))
    signed: Tensor = (
        basis * upper.diagonal().sign() * longer**0.5
    )  # the signs make it uniform among all rotations
    return signed if width >= inputs else signed.T.contiguous()
