"""Text and image blocks of a fused content vector, brought to one scale: what TIGER_M quantizes.

Vectors come from the encoder ``fusion``: D_t columns of text, then D_v of image; a block of zeros is missing.
The published table names TIGER_M without a description, so this definition is ours::

    x = [ s_t PCA(x_t / std_t) ; s_v PCA(x_v / std_v) ; s_v flag ]

Each block is standardised column by column and rotated onto its principal components, over the items that
have it; s scales it to a total variance of 1, so that neither modality decides the codes by its norm. A
missing block is the mean of those present, which is zero; ``flag`` says that the image is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from catalex.errors import user_error

PARTS = ("mean", "forward", "backward", "length")
"""Fields of a `Block`, as they are saved."""


@dataclass(frozen=True)
class Block:
    """One modality: an affine map ``x -> (x - mean) @ forward`` of unit vectors, and back.

    Attributes:
        mean: ``(D_m,)``.
        forward: ``(D_m, P)``.
        backward: ``(P, D_m)``.
        length: ``()`` mean norm of the vectors that are there, which `invert` gives back.
    """

    mean: Tensor
    forward: Tensor
    backward: Tensor
    length: Tensor

    @classmethod
    def fit(cls, vectors: Tensor, components: int) -> Self:
        """Learn from vectors ``(N, D_m)``; rows of zeros are missing and teach nothing."""
        rows = unit(vectors.double())
        there = vectors.any(1)
        width = min(components, vectors.shape[1])
        if not bool(there.any()):
            zero = torch.zeros(vectors.shape[1], width)
            return cls(torch.zeros(vectors.shape[1]), zero, zero.T.contiguous(), torch.zeros(()))
        seen = rows[there]
        length = torch.linalg.vector_norm(vectors[there].double(), dim=1).mean().float()
        mean = seen.mean(0)
        spread = (seen - mean).square().mean(0).sqrt()
        spread = torch.where(spread > 1e-9, spread, torch.inf)  # a constant column says nothing
        scaled = (seen - mean) / spread
        values, axes = torch.linalg.eigh(scaled.T @ scaled / len(seen))
        kept = torch.argsort(values, descending=True, stable=True)[:width]
        axes = axes[:, kept]
        largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
        axes = axes * torch.where(largest < 0, -1.0, 1.0)  # the sign of an axis is arbitrary
        scale = (values[kept].clamp(min=0).sum() * len(seen) / len(rows)).clamp(min=1e-12).rsqrt()
        forward = axes / spread[:, None] * scale
        finite = torch.where(torch.isinf(spread), 0.0, spread)
        return cls(mean.float(), forward.float(), (axes.T * finite / scale).float(), length)

    def __call__(self, vectors: Tensor) -> Tensor:
        """``(N, P)``; zero where the modality is missing."""
        found = (unit(vectors.float()) - self.mean) @ self.forward
        return found * vectors.any(1, keepdim=True)

    def invert(self, rows: Tensor) -> Tensor:
        """``(N, D_m)`` of ``(N, P)``, up to the dropped components."""
        return (rows @ self.backward + self.mean) * self.length


@dataclass(frozen=True)
class Modalities:
    """The text block, the image block, and the scale of the flag of a missing image (0: no image is missing,
    all are, or no flag is wanted)."""

    text: Block
    image: Block
    flag: float
    flag_mean: float

    @classmethod
    def fit(cls, vectors: Tensor, text_width: int, components: int, flag: bool) -> Self:
        """Learn from fused vectors ``(N, D_t + D_v)``."""
        text, image = vectors[:, :text_width], vectors[:, text_width:]
        missing = float((~image.any(1)).double().mean())
        scale = 1.0 if flag and 0 < missing < 1 else 0.0
        made = Block.fit(image, components)
        if scale:  # both share the block's total variance of 1
            made = replace(made, forward=made.forward * 0.5**0.5, backward=made.backward / 0.5**0.5)
            scale = (0.5 / (missing * (1 - missing))) ** 0.5
        return cls(Block.fit(text, components), made, scale, missing)

    @property
    def text_width(self) -> int:
        """D_t."""
        return len(self.text.mean)

    @property
    def parts(self) -> tuple[int, int]:
        """Columns of x that belong to the text, and to the image with its flag."""
        return self.text.forward.shape[1], self.image.forward.shape[1] + 1

    def __call__(self, vectors: Tensor) -> Tensor:
        """x ``(N, P_t + P_v + 1)`` of fused vectors ``(N, D_t + D_v)``."""
        text, image = vectors[:, : self.text_width], vectors[:, self.text_width :]
        missing = (~image.any(1, keepdim=True)).float() - self.flag_mean
        return torch.cat([self.text(text), self.image(image), self.flag * missing], dim=1)

    def invert(self, rows: Tensor) -> Tensor:
        """Fused vectors ``(N, D_t + D_v)`` of x, each block with the mean norm of its modality; a missing
        image comes back as the mean image."""
        cut = self.parts[0]
        return torch.cat([self.text.invert(rows[:, :cut]), self.image.invert(rows[:, cut:-1])], dim=1)

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """The map as named arrays, for saving."""
        found: dict[str, np.ndarray[Any, Any]] = {
            "modalities.flag": np.array([self.flag, self.flag_mean], np.float64)
        }
        for name, block in (("text", self.text), ("image", self.image)):
            for part in PARTS:
                found[f"modalities.{name}.{part}"] = getattr(block, part).contiguous().numpy()
        return found

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray[Any, Any]]) -> Self:
        """Read back what `arrays` gave."""
        text, image = (
            Block(*(torch.from_numpy(np.array(arrays[f"modalities.{name}.{part}"])) for part in PARTS))
            for name in ("text", "image")
        )
        flag, mean = arrays["modalities.flag"].tolist()
        return cls(text, image, flag, mean)


def unit(rows: Tensor) -> Tensor:
    """``(N, D)`` with rows of norm 1; rows of zeros stay."""
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / torch.where(norms > 0, norms, 1.0)


def check_text_width(width: int, text_width: int) -> None:
    """Refuse vectors ``(N, width)`` that do not hold an image block behind `text_width` columns of text.

    Raises:
        CatalexError: When they do not.
    """
    if width <= text_width:
        raise user_error(
            "the content vectors hold no image block behind the text block",
            place="tokenizer.text_width",
            value=text_width,
            allowed=f"below {width}, the width of the vectors",
            remedy="use encoder 'fusion', and set text_width to the width of its text encoder",
        )
