"""Late fusion: the cosine identity, missing parts, and parts that do not fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalex.errors import CatalexError
from catalex.features import ItemContent, embed_items
from catalex.features.fusion import CorpusFusion, Fusion, FusionOptions, make_fusion
from unit.features.tiny import Counting


class Images(Counting):
    """A stand-in for an image encoder."""

    needs_images = True
    reads_text = False

    def encode(
        self, items: Sequence[ItemContent], advance: Callable[[int], None] | None = None
    ) -> np.ndarray:
        return super().encode([ItemContent(repr(item.image)) for item in items], advance)


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def parts(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return unit(random.normal(size=(6, 4))), unit(random.normal(size=(6, 3)))


def fusion(**options: object) -> Fusion:
    return Fusion(FusionOptions.parse(options, "fusion"), Counting(4), Images(3))


@given(st.floats(0.01, 0.99), st.integers(0, 100))
def test_cosine_is_the_weighted_mean_of_the_parts(weight: float, seed: int) -> None:
    text, image = parts(seed)
    fused = fusion(text_weight=weight).fuse(text, image)
    assert fused.shape == (6, 7)
    np.testing.assert_allclose(
        fused @ fused.T, weight * text @ text.T + (1 - weight) * image @ image.T, atol=1e-5
    )


def test_present_part_carries_the_whole_norm() -> None:
    text, image = parts()
    text[1], image[2] = 0, 0
    text[3], image[3] = 0, 0
    fused = fusion().fuse(text, image)
    np.testing.assert_allclose(np.linalg.norm(fused, axis=1), [1, 1, 1, 0, 1, 1], atol=1e-6)
    np.testing.assert_allclose(fused[1], [0, 0, 0, 0, *image[1]], atol=1e-6)
    np.testing.assert_allclose(fused[2], [*text[2], 0, 0, 0], atol=1e-6)


def test_mean_stands_for_a_missing_part() -> None:
    text, image = parts()
    image[2], text[3], image[3] = 0, 0, 0
    encoder = fusion(missing="mean")
    with pytest.raises(CatalexError, match="has not been fitted"):
        encoder.fuse(text, image)
    encoder.fit_parts(text, image)
    mean = image[[0, 1, 4, 5]].mean(0)
    fused = encoder.fuse(text, image)
    expected = np.concatenate([text[2], mean / np.linalg.norm(mean)]) / np.sqrt(2)
    np.testing.assert_allclose(fused[2], expected, atol=1e-6)
    assert not fused[3].any()  # an item with nothing stays at zero


def test_parts_are_cached_by_themselves(tmp_path: Path) -> None:
    items = [ItemContent("a", b"1"), ItemContent("b", b"2")]
    first = fusion(text_weight=0.3)
    direct = first.encode(items)
    np.testing.assert_allclose(embed_items(items, first, cache=tmp_path, name="d"), direct, atol=1e-6)
    other = fusion(text_weight=0.7)
    embed_items(items, other, cache=tmp_path, name="d")
    assert all(part.calls == [] for part in other.parts if isinstance(part, Counting))


def test_mean_and_fitted_parts_make_it_depend_on_the_corpus() -> None:
    def made(**options: object) -> Fusion:
        settings = FusionOptions.parse(options, "fusion")
        return make_fusion(
            settings, "fusion", lambda part, _: Images(3) if "efficient" in part["name"] else Counting(4)
        )

    assert not made().corpus_dependent
    assert isinstance(made(missing="mean"), CorpusFusion)
    assert made(missing="mean").corpus_dependent
    with pytest.raises(CatalexError, match=r"fusion\.text\.name: the text part is an image encoder"):
        made(text={"name": "efficientnet-lite0"})
    with pytest.raises(CatalexError, match=r"fusion\.image\.name: the image part is not an image encoder"):
        made(image={"name": "minilm"})
