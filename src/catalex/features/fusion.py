"""The encoder ``fusion``: a text vector and an image vector of each item, joined late into one.

Each part is L2-normalised, scaled by the square root of its weight and concatenated; the whole is normalised
again. For items with both parts the cosine of two items is then the weighted mean of the two parts' cosines::

    cos(a, b) = w_text cos(text_a, text_b) + w_image cos(image_a, image_b)        w_text + w_image = 1
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field

from catalex.artifacts import hash_json
from catalex.errors import user_error
from catalex.features.base import ContentEncoder, ItemContent
from catalex.options import Options
from catalex.types import Floats

_REVISION = 1


class FusionOptions(Options):
    """Which encoders are joined, and how."""

    text: dict[str, Any] = Field(default_factory=lambda: {"name": "minilm"})
    """Settings of the text encoder, as they would stand alone."""

    image: dict[str, Any] = Field(default_factory=lambda: {"name": "efficientnet-lite0"})
    """Settings of the image encoder."""

    text_weight: float = Field(default=0.5, gt=0.0, lt=1.0)
    """Share of the text in the similarity of two items that have both; the image has the rest. Even by
    default, since nothing is known in advance."""

    missing: Literal["zero", "mean"] = "zero"
    """What stands for a part that an item lacks. ``zero``: nothing; the present part carries the whole norm.
    ``mean``: the mean vector of the catalogue's items that have the part, so that items without an image lie
    in the middle of those with one instead of on a side of their own."""


class Fusion(ContentEncoder):
    """``(N, D_text + D_image)`` from two finished encoders.

    `embed` encodes and caches the two parts by themselves and calls `fit_parts` and `fuse`; `fit` and
    `encode` are for callers that have items only.
    """

    Options = FusionOptions
    needs_images = True

    def __init__(self, options: FusionOptions, text: ContentEncoder, image: ContentEncoder) -> None:
        self.options = options
        self.parts: tuple[ContentEncoder, ContentEncoder] = (text, image)
        self._means: tuple[Floats, Floats] | None = None

    @property
    def fingerprint(self) -> str:
        settings = [
            _REVISION,
            self.options.text_weight,
            self.options.missing,
            *(part.fingerprint for part in self.parts),
        ]
        return f"fusion-{hash_json(settings)[:16]}"

    @property
    def width(self) -> int:
        return self.parts[0].width + self.parts[1].width

    @property
    def failures(self) -> int:
        """Contents that either part could not read."""
        return sum(int(getattr(part, "failures", 0)) for part in self.parts)

    def fit(self, items: Sequence[ItemContent]) -> None:
        """Fit the parts, and take the means that stand for missing parts."""
        for part in self.parts:
            part.fit(items)
        if self.options.missing == "mean":
            self.fit_parts(*(part.encode(items) for part in self.parts))

    def fit_parts(self, text: Floats, image: Floats) -> None:
        """Take the mean direction of the present rows of ``(N, D_text)`` and ``(N, D_image)``."""
        self._means = (_mean_direction(text), _mean_direction(image))

    def encode(self, items: Sequence[ItemContent], advance: Callable[[int], None] | None = None) -> Floats:
        """Vectors ``(N, D)``; an item with neither part gets the zero vector."""
        text = self.parts[0].encode(items)
        return self.fuse(text, self.parts[1].encode(items, advance))

    def fuse(self, text: Floats, image: Floats) -> Floats:
        """Join ``(N, D_text)`` and ``(N, D_image)``, whose zero rows mean "missing".

        Raises:
            CatalexError: When means are wanted but neither `fit` nor `fit_parts` was called.
        """
        scaled = []
        present = np.any(text, axis=1) | np.any(image, axis=1)
        for index, (vectors, weight) in enumerate(
            ((text, self.options.text_weight), (image, 1.0 - self.options.text_weight))
        ):
            rows = vectors.astype(np.float64)
            if self.options.missing == "mean":
                if self._means is None:
                    raise user_error(
                        "encoder 'fusion' with missing: mean has not been fitted", remedy="call fit first"
                    )
                rows[present & ~np.any(vectors, axis=1)] = self._means[index]
            scaled.append(np.sqrt(weight) * _unit(rows))
        fused: Floats = _unit(np.concatenate(scaled, axis=1)).astype(np.float32)
        return fused


class CorpusFusion(Fusion):
    """Fusion whose vectors depend on the other items: means stand for missing parts, or a part is fitted."""

    corpus_dependent = True


def make_fusion(
    options: FusionOptions, place: str, make: Callable[[Mapping[str, Any], str], ContentEncoder]
) -> Fusion:
    """A fusion of the two encoders that `make(settings, place)` builds.

    Raises:
        CatalexError: When a part is a fusion itself, or text and image are swapped.
    """
    text, image = make(options.text, f"{place}.text"), make(options.image, f"{place}.image")
    if text.needs_images:
        raise user_error(
            "the text part is an image encoder",
            place=f"{place}.text.name",
            value=options.text["name"],
            remedy="name a text encoder such as minilm",
        )
    if not image.needs_images or isinstance(image, Fusion):
        raise user_error(
            "the image part is not an image encoder",
            place=f"{place}.image.name",
            value=options.image["name"],
            remedy="name an image encoder such as efficientnet-lite0",
        )
    depends = options.missing == "mean" or text.corpus_dependent or image.corpus_dependent
    return (CorpusFusion if depends else Fusion)(options, text, image)


def _unit(rows: Any) -> Any:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)


def _mean_direction(vectors: Floats) -> Floats:
    """Mean of the rows that are not zero, of norm 1 (zero when there are none)."""
    present = vectors[np.any(vectors, axis=1)].astype(np.float64)
    if not len(present):
        return np.zeros(vectors.shape[1], np.float32)
    result: Floats = _unit(present.mean(axis=0, keepdims=True))[0].astype(np.float32)
    return result
