"""The vector cache: what was put is got, by content, whatever happens to the files."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from catalex.features.base import ItemContent
from catalex.features.cache import VectorCache, content_key


def keys(*texts: str) -> list[bytes]:
    return [content_key(ItemContent(text)) for text in texts]


def vectors(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)


def test_put_then_get_also_from_a_new_object(tmp_path: Path) -> None:
    stored = vectors(3)
    VectorCache(tmp_path, 4).put(keys("a", "b", "c"), stored)
    found, present = VectorCache(tmp_path, 4).get(keys("c", "x", "a"))
    assert present.tolist() == [True, False, True]
    np.testing.assert_array_equal(found, [stored[2], np.zeros(4), stored[0]])


def test_content_keys_tell_text_and_image_apart() -> None:
    contents = [
        ("", None),
        ("a", None),
        ("a", b""),
        ("a", b"x"),
        ("", b"ax"),
        ("aimage:x", None),
        ("a\ud800", None),
    ]
    assert len({content_key(ItemContent(*one)) for one in contents}) == len(contents)


def test_sees_what_another_process_wrote(tmp_path: Path) -> None:
    reader = VectorCache(tmp_path, 4)
    assert not reader.get(keys("a"))[1].any()
    VectorCache(tmp_path, 4).put(keys("a"), vectors(1))
    assert reader.get(keys("a"))[1].all()
    assert len(reader) == 1


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "text"])
def test_damage_is_noticed_and_only_costs_the_shard(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = VectorCache(tmp_path, 4)
    cache.put(keys("a", "b"), vectors(2))
    first = next(tmp_path.glob("*.safetensors"))
    cache.put(keys("c"), vectors(1, seed=1))
    data = bytearray(first.read_bytes())
    data[-3] ^= 1
    first.write_bytes(
        {"cut": bytes(data[:-7]), "bit": bytes(data), "empty": b"", "text": b"no shard"}[damage]
    )
    again = VectorCache(tmp_path, 4)
    _, present = again.get(keys("a", "b", "c"))
    assert present.tolist() == [False, False, True]
    assert f"{first.name}: cache shard ignored" in capsys.readouterr().err
    again.put(keys("a", "b"), vectors(2))  # the same content has the same name, and mends the file
    np.testing.assert_array_equal(VectorCache(tmp_path, 4).get(keys("a", "b"))[0], vectors(2))


def test_another_width_is_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    VectorCache(tmp_path, 4).put(keys("a"), vectors(1))
    assert not VectorCache(tmp_path, 5).get(keys("a"))[1].any()
    assert "width 5" in capsys.readouterr().err


def test_float16_returns_at_once_what_it_returns_later(tmp_path: Path) -> None:
    unit = vectors(50) / np.linalg.norm(vectors(50), axis=1, keepdims=True)
    names = keys(*map(str, range(50)))
    at_once = VectorCache(tmp_path, 4, np.float16).put(names, unit)
    later = VectorCache(tmp_path, 4, np.float16).get(names)[0]
    np.testing.assert_array_equal(at_once, later)
    assert 0 < np.abs(later - unit).max() <= 2.5e-4


def test_threads_share_one_cache(tmp_path: Path) -> None:
    cache = VectorCache(tmp_path, 4)

    def work(number: int) -> bool:
        names = keys(*(f"{number}-{row}" for row in range(5)))
        cache.put(names, vectors(5, seed=number))
        found, present = cache.get(names)
        return bool(present.all() and np.array_equal(found, vectors(5, seed=number)))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(40)))
    fresh = VectorCache(tmp_path, 4)
    fresh.refresh()
    assert len(fresh) == 200
    assert not list(tmp_path.glob(".*"))
