"""Cosines by tables are those of the decoded vectors, for tokenizers of either kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catalex.bundle import Bundle
from catalex.errors import CatalexError, user_error
from catalex.serving import closeness
from catalex.serving.catalogue import LiveCatalogue
from catalex.serving.closeness import Decoded, Summed, closeness_of, unit
from catalex.serving.items import Selection
from catalex.serving.nearest import Neighbourhood
from catalex.serving.store import Store
from catalex.tokenizers import TokenizerDomain, make_tokenizer
from catalex.tokenizers.rqkmeans import RQKMeans
from support.live import small_bundle
from support.worlds import ring

KINDS: list[tuple[dict[str, Any], type]] = [
    ({"name": "rqkmeans", "levels": 3, "codebook_size": 8}, Summed),
    ({"name": "rqkmeans", "levels": 2, "codebook_size": 8, "normalise": "whiten"}, Summed),
    ({"name": "rqvae", "levels": 2, "codebook_size": 8, "epochs": 1}, Decoded),
]


@pytest.mark.parametrize("pairs", [0, 2**20])
@pytest.mark.parametrize(("options", "kind"), KINDS)
def test_cosines_are_those_of_the_decoded_vectors(
    options: dict[str, Any], kind: type, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closeness, "PAIRS", pairs)
    random = np.random.default_rng(0)
    vectors = random.standard_normal((60, 12)).astype(np.float32) + 0.5
    world = ring(items=60)
    tokenizer = make_tokenizer(options)
    tokenizer.fit([TokenizerDomain("shop", vectors, world.training, world.split_id)], seed=0, device="cpu")
    codes = tokenizer.encode(vectors)
    numbers = np.concatenate([np.arange(40), np.arange(1000, 1020)])
    found = closeness_of(tokenizer)
    assert isinstance(found, kind)
    found.learn(codes[:30], numbers[:30])
    found.learn(codes, numbers)  # the others came
    query = unit(random.standard_normal(12).astype(np.float32))
    expected = unit(tokenizer.decode(codes)) @ query
    np.testing.assert_allclose(found.cosines(codes, numbers, query), expected, atol=2e-5)
    np.testing.assert_allclose(found.cosines(codes[5:9], numbers[5:9], query), expected[5:9], atol=2e-5)
    assert found.cosines(codes[:0], numbers[:0], query).shape == (0,)


def test_a_tokenizer_that_cannot_decode_hinders_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise user_error("codes alone cannot be decoded")

    monkeypatch.setattr(RQKMeans, "decode", refuse)
    bundle = Bundle.load(small_bundle(tmp_path / "shop"))
    live = LiveCatalogue.open(bundle, Store.open(str(tmp_path / "store.db")))
    item, found = next(iter(live)), Neighbourhood(live)
    assert [depth.code for depth in found.path(item.identifier)] == list(item.identifier)
    with pytest.raises(CatalexError, match="cannot be decoded"):
        found.of_item(item, 3, Selection())
    live.close()


def test_an_identifier_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting:
        asked = 0

        def decode(self, codes: Any) -> Any:
            self.asked += len(codes)
            return np.asarray(codes, np.float32) + 1

    tokenizer: Any = Counting()
    found = Decoded(tokenizer)
    codes = np.arange(12, dtype=np.int32).reshape(6, 2)
    found.learn(codes[:4], np.arange(4))
    found.learn(codes, np.arange(6))
    found.learn(codes[2:], np.arange(2, 6))
    assert tokenizer.asked == 6
