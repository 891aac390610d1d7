"""MiniLM: the right weights, near neighbours that make sense, and clear words when it is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from catalex.errors import CatalexError
from catalex.features import ItemContent, make_encoder, minilm
from catalex.features.minilm import minilm_folder

TEXTS = [
    "Wireless controller for PlayStation 4",
    "Xbox One gamepad with cable",
    "Chef's knife, stainless steel, 8 inch",
    "Paring kitchen knife with wooden handle",
    "Non-slip yoga mat",
    "Acoustic guitar strings, light",
]


@pytest.fixture(scope="module")
def folder() -> Path:
    try:
        return minilm_folder()
    except CatalexError as error:
        pytest.skip(f"the weights are not installed: {error}")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_pairs_are_nearest_neighbours(folder: Path, precision: str) -> None:
    encoder = make_encoder({"name": "minilm", "precision": precision}, "e")
    vectors = encoder.encode([ItemContent(text) for text in TEXTS])
    assert vectors.shape == (6, 384)
    nearest = (vectors @ vectors.T - 2 * np.eye(6)).argmax(1)
    assert nearest[:4].tolist() == [1, 0, 3, 2]


def test_equals_sentence_transformers(folder: Path) -> None:
    library = pytest.importorskip("sentence_transformers", reason="the reference is not installed")
    expected = library.SentenceTransformer(str(folder), device="cpu").encode(TEXTS, normalize_embeddings=True)
    encoder = make_encoder({"name": "minilm", "precision": "fp32"}, "e")
    np.testing.assert_allclose(encoder.encode([ItemContent(text) for text in TEXTS]), expected, atol=1e-5)


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "PACKAGES", ("no-such-package-at-all",))
    with pytest.raises(CatalexError, match=r"pip install 'catalex\[minilm\]'"):
        make_encoder({"name": "minilm"}, "e")


def test_second_package_is_tried(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "PACKAGES", ("no-such-package-at-all", *minilm.PACKAGES))
    assert minilm_folder() == folder


def test_other_weights_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(
        CatalexError, match=r"not the published all-MiniLM-L6-v2.*53aa51172d142c89.*reinstall"
    ):
        minilm_folder()
