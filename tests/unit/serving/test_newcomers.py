"""Places for newcomers: how many, which, and in what order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from catalex.bundle import Bundle
from catalex.features import ItemContent
from catalex.serving.catalogue import LiveCatalogue
from catalex.serving.items import NewItem, Selection
from catalex.serving.newcomers import Newcomers
from catalex.serving.store import Store
from support.live import small_bundle


@pytest.fixture
def live(tmp_path: Path) -> Iterator[LiveCatalogue]:
    found = LiveCatalogue.open(
        Bundle.load(small_bundle(tmp_path / "bundle")), Store.open(str(tmp_path / "store.db"))
    )
    titles = [item.title for item in found][:40:4]
    found.add([NewItem(f"n{i}", title=f"{title} {i}") for i, title in enumerate(titles)])
    yield found
    found.close()


def test_the_last_places_are_theirs(live: LiveCatalogue) -> None:
    history = [item.key for item in live][:2]
    best = live.recommend(live.tokens_of(history), 20, selection=Selection(categories=("Shop",)))
    found = Newcomers(live, share=0.3).mix(best, history, 10)
    assert found[:7] == best[:7]
    assert len({item.key for item, _ in found}) == 10
    assert [item.key[0] for item, _ in found[7:]] == ["n"] * 3
    scores = [score for _, score in found]
    assert scores == sorted(scores, reverse=True)
    assert Newcomers(live, share=0.3).mix(best, history, 3) == best[:3]  # rounded down
    assert Newcomers(live, share=0.0).mix(best, history, 10) == best[:10]


def test_their_order_is_that_of_the_formula(live: LiveCatalogue) -> None:
    history = [item.key for item in live][:3]
    best = live.recommend(live.tokens_of(history), 20)
    numbers = Newcomers(live, width=0.2).ranked(best, history).tolist()
    new = [item for item in live if item.key.startswith("n")]
    assert sorted(numbers) == [item.number for item in new]

    def unit(text: str) -> np.ndarray:  # type: ignore[type-arg]
        row = live.reader.vectors([ItemContent(text)])[0].astype(np.float64)
        return row / max(np.linalg.norm(row), 1e-9)  # zeros where no word is known

    total = sum(np.exp(score) for _, score in best)
    last = live.get(history[-1])
    assert last is not None
    weighed = [(item, np.exp(score) / total) for item, score in best] + [(last, 1.0)]
    scores = {
        one.number: sum(w * np.exp((unit(one.text) @ unit(item.text) - 1) / 0.2) for item, w in weighed)
        for one in new
    }
    along = [scores[number] for number in numbers]
    assert along == pytest.approx(sorted(along, reverse=True), rel=1e-5)


def test_those_that_were_had_removed_or_not_wanted_get_none(live: LiveCatalogue) -> None:
    newcomers = Newcomers(live, share=0.5)
    old = next(iter(live)).key
    best = live.recommend(live.tokens_of([old]), 20, selection=Selection(categories=("Shop",)))
    first = newcomers.mix(best, [old], 10)[5][0]
    assert first.key not in [item.key for item, _ in newcomers.mix(best, [first.key, old], 10)]
    live.update("n3", in_stock=False)
    keys = [item.key for item, _ in newcomers.mix(best, [old], 10, Selection(in_stock=True))]
    assert "n3" not in keys
    live.remove(first.key)
    assert first.key not in [item.key for item, _ in newcomers.mix(best, [old], 10)]
    for number in range(10):
        live.remove(f"n{number}")
    assert newcomers.mix(best, [old], 10) == best[:10]
