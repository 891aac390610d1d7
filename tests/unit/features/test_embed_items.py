"""`embed` in blocks: killed and resumed runs, duplicates, cache hits, empty and missing content."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from catalex.data.columns import ITEMS_SCHEMA
from catalex.data.domain import Domain
from catalex.data.histories import Histories, SplitHistories
from catalex.errors import CatalexError
from catalex.features import ItemContent, TextOptions, embed, embed_items, make_encoder
from catalex.features.embed import BLOCK, CatalogueContent
from unit.features.tiny import Counting

COUNT = 3 * BLOCK + 100


def catalogue(count: int = COUNT) -> list[ItemContent]:
    """Items with some repeated content, within a block and across blocks."""
    return [ItemContent(f"item {row % 3000 if row % 7 else row // 50}") for row in range(count)]


def test_killed_in_any_block_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    whole = embed_items(catalogue(), Counting(), cache=tmp_path / "whole", name="d")
    for allowed in range(4):
        cache = tmp_path / str(allowed)
        killed = Counting(allowed=allowed)
        with pytest.raises(KeyboardInterrupt):
            embed_items(catalogue(), killed, cache=cache, name="d")
        resumed = Counting()
        np.testing.assert_array_equal(whole, embed_items(catalogue(), resumed, cache=cache, name="d"))
        assert len(resumed.calls) == 4 - allowed


def test_killed_while_a_shard_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = embed_items(catalogue(), Counting(), cache=tmp_path / "whole", name="d")
    cache = tmp_path / "killed" / Counting().fingerprint
    embed_items(catalogue(2 * BLOCK), Counting(), cache=tmp_path / "killed", name="d")
    newest = max(cache.glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    newest.rename(cache / f".{newest.name}.abc.tmp")  # what kill -9 leaves behind before the rename
    resumed = embed_items(catalogue(), Counting(), cache=tmp_path / "killed", name="d")
    np.testing.assert_array_equal(whole, resumed)


def test_equal_content_is_encoded_once(tmp_path: Path) -> None:
    encoder = Counting()
    vectors = embed_items(catalogue(), encoder, cache=tmp_path, name="d")
    encoded = [text for call in encoder.calls for text in call]
    assert sorted(encoded) == sorted({item.text for item in catalogue()})
    first: dict[str, int] = {}
    for row, item in enumerate(catalogue()):
        np.testing.assert_array_equal(vectors[row], vectors[first.setdefault(item.text, row)])


def test_only_new_items_are_encoded(tmp_path: Path) -> None:
    before = embed_items(catalogue(500), Counting(), cache=tmp_path, name="d")
    encoder = Counting()
    after = embed_items([*catalogue(500), ItemContent("brand new")], encoder, cache=tmp_path, name="d")
    assert encoder.calls == [["brand new"]]
    np.testing.assert_array_equal(after[:500], before)


def test_text_encoder_ignores_images_in_its_keys(tmp_path: Path) -> None:
    embed_items([ItemContent("a", b"1")], Counting(), cache=tmp_path, name="d")
    encoder = Counting()
    embed_items([ItemContent("a", b"2"), ItemContent("a")], encoder, cache=tmp_path, name="d")
    assert encoder.calls == []


def test_empty_catalogue(tmp_path: Path) -> None:
    assert embed_items([], Counting(), cache=tmp_path, name="d").shape == (0, 8)


def make_domain(tmp_path: Path) -> Domain:
    rows = [{"item_id": 0, "title": "red kite"}, {"item_id": 1}, {"item_id": 2, "title": "kite pan"}]
    nothing = SplitHistories(Histories.from_lists([]), Histories.from_lists([]).items)
    return Domain("kites", tmp_path, pa.Table.from_pylist(rows, schema=ITEMS_SCHEMA), nothing, {})


def test_embed_counts_items_without_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn", reason="tfidf-svd needs scikit-learn")
    encoder = make_encoder({"name": "tfidf-svd", "width": 4}, "e")
    vectors = embed(make_domain(tmp_path), encoder, text=TextOptions(), cache=tmp_path / "cache")
    assert vectors.shape == (3, 4)
    assert not vectors[1].any()
    assert "embed kites: 1 of 3 items have no text" in capsys.readouterr().err


def test_image_encoder_without_images_is_a_sentence(tmp_path: Path) -> None:
    class NeedsImages(Counting):
        needs_images = True

    with pytest.raises(CatalexError, match=r"kites: encoder 'counting-8' needs images.*minilm"):
        embed(make_domain(tmp_path), NeedsImages(), text=TextOptions(), cache=tmp_path)


def test_corpus_encoder_is_cached_by_the_whole_corpus(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Corpus(Counting):
        corpus_dependent = True

    items = catalogue(10)
    first = Corpus()
    vectors = embed_items(items, first, cache=tmp_path, name="d")
    second = Corpus()
    np.testing.assert_array_equal(vectors, embed_items(items, second, cache=tmp_path, name="d"))
    assert (len(first.calls), len(second.calls)) == (1, 0)
    embed_items(items[:9], second, cache=tmp_path, name="d")
    assert len(second.calls) == 1
    for path in tmp_path.rglob("corpus-*"):
        path.write_bytes(b"damaged")
    third = Corpus()
    np.testing.assert_array_equal(vectors, embed_items(items, third, cache=tmp_path, name="d"))
    assert len(third.calls) == 1
    assert "ignored and made again" in capsys.readouterr().err


def test_catalogue_fetches_images_only_when_asked() -> None:
    asked: list[int] = []

    class Store:
        def get(self, item_id: int) -> bytes | None:
            asked.append(item_id)
            return b"image" if item_id == 1 else None

    content = CatalogueContent(["a", "b", "c"], Store())
    assert len(content) == 3
    assert asked == []
    assert content[1:3] == [ItemContent("b", b"image"), ItemContent("c")]
    assert asked == [1, 2]
