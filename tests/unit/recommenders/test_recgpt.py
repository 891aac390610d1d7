"""RecGPT on unseen domains: nothing in it belongs to a catalogue."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catalex.data.histories import Histories
from catalex.errors import CatalexError
from catalex.recommenders.base import RecommenderDomain
from catalex.recommenders.recgpt import Content, RecGPT, RecGPTOptions
from catalex.tokenizers.base import CodeSpace
from support.worlds import domain, ring

SPACE = CodeSpace((8, 8, 8), (0, 0, 0))
TINY: dict[str, Any] = {"hidden": 32, "layers": 1, "heads": 2, "dropout": 0.0, "max_history": 6, "beam": 20}
TRAINING = {"epochs": 40, "batch_size": 16, "learning_rate": 0.01, "warmup_steps": 5, "evaluate_every": 20}


def made(**options: Any) -> RecGPT:
    training = {**TRAINING, **options.pop("training", {})}
    return RecGPT(RecGPTOptions.parse({**TINY, **options, "training": training}, "recommender"), SPACE)


def circle(name: str = "ring", turn: int = 0) -> RecommenderDomain:
    """The ring of 20 items; `turn` renames its items, whose codes and vectors go with them."""
    angles = 2 * np.pi * np.arange(20) / 20
    vectors = np.stack([np.cos(angles), np.sin(angles)] * 3, axis=1).astype(np.float32)
    codes = np.stack([np.arange(20) // 8, np.arange(20) % 8, np.arange(20) % 3], axis=1).astype(np.int32)
    items = (np.arange(20) + turn) % 20
    world = domain(ring(), name=name, codes=codes[items])
    shifted = [((h - turn) % 20).tolist() for h in _rows(world.training)]
    cases = world.validation
    return replace(
        world,
        vectors=vectors[items],
        training=Histories.from_lists(shifted),
        validation=replace(
            cases,
            histories=Histories(cases.histories.offsets, (cases.histories.items - turn) % 20),
            targets=(cases.targets - turn) % 20,
        ),
    )


def _rows(histories: Histories) -> list[Any]:
    return [histories[user] for user in range(len(histories))]


@pytest.fixture(scope="module")
def trained() -> RecGPT:
    recommender = made()
    recommender.fit([circle()], seed=0, device="cpu")
    return recommender


def test_an_unseen_catalogue_is_served_without_training(trained: RecGPT) -> None:
    """The same items under other numbers: nothing may depend on the numbers."""
    seen, renamed = circle(), circle("other", turn=7)
    trained.bind(seen)
    before = trained.recommend(seen.validation.histories, 5)
    trained.bind(renamed)
    after = trained.recommend(renamed.validation.histories, 5)
    np.testing.assert_array_equal((after.items + 7) % 20, before.items)
    np.testing.assert_allclose(after.scores, before.scores, rtol=1e-4)
    assert (before.ranks(seen.validation.targets) == 1).mean() > 0.8


def test_only_items_of_the_bound_catalogue_come_out(trained: RecGPT) -> None:
    whole = circle()
    assert whole.vectors is not None
    assert whole.identifiers is not None
    few = replace(whole, items=7, vectors=whole.vectors[:7], identifiers=whole.identifiers[:7])
    trained.bind(few)
    ranking = trained.recommend(Histories.from_lists([[0, 1], [3]]), 10)
    assert (np.sort(ranking.items, axis=1) == [[-1, -1, -1, 0, 1, 2, 3, 4, 5, 6]] * 2).all()


def test_saved_and_loaded_it_answers_alike(trained: RecGPT, tmp_path: Path) -> None:
    trained.bind(circle())
    trained.save(tmp_path)
    loaded = RecGPT.load(tmp_path)
    one, other = (r.recommend(circle().validation.histories, 5) for r in (trained, loaded))
    np.testing.assert_array_equal(one.items, other.items)
    np.testing.assert_array_equal(one.scores, other.scores)
    started = made(training={"epochs": 1, "learning_rate": 1e-9})
    started.start_from(tmp_path)
    facts = started.fit([circle("other", turn=3)], seed=1, device="cpu")
    assert facts["valid_ndcg@10"] > 0.8
    assert set(started.split_ids) == {"ring", "other"}


@pytest.mark.parametrize("options", [{"grid": [4, 2]}, {"tied": True}, {"grid": [4, 2], "tied": True}])
def test_other_tables_learn_and_answer_alike_when_loaded(options: dict[str, Any], tmp_path: Path) -> None:
    recommender = made(**options)
    facts = recommender.fit([circle()], seed=0, device="cpu")
    assert facts["valid_ndcg@10"] > 0.8
    recommender.save(tmp_path)
    loaded = RecGPT.load(tmp_path)
    one, other = (r.recommend(circle().validation.histories, 5) for r in (recommender, loaded))
    np.testing.assert_array_equal(one.items, other.items)
    np.testing.assert_array_equal(one.scores, other.scores)
    with pytest.raises(CatalexError, match="tied: the pre-trained recommender has another head"):
        made(**{**options, "tied": not recommender.options.tied}).start_from(tmp_path)


def test_several_domains_are_trained_together() -> None:
    recommender = made(training={"epochs": 2, "evaluate_every": 1})
    facts = recommender.fit([circle(), circle("other", turn=5)], seed=0, device="cpu")
    assert len(facts["curves"]["valid_ndcg@10"]) == 2
    assert set(recommender.split_ids) == {"ring", "other"}


def test_content_is_cut_into_one_slice_a_token() -> None:
    vectors = np.arange(10, dtype=np.float32).reshape(2, 5)
    content = Content.of(np.ones((2, 3), np.int64), vectors, "cpu")
    assert content.slices.tolist() == [
        [[0, 1], [2, 3], [4, 0]],
        [[5, 6], [7, 8], [9, 0]],
        [[0, 0], [0, 0], [0, 0]],
    ]
    assert content.tokens[-1].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vectors": None}, "ring: the recommender needs vectors"),
        ({"identifiers": None}, "ring: the recommender needs identifiers"),
        ({"identifiers": np.zeros((20, 2), np.int32)}, "another number of levels"),
        ({"training": Histories.from_lists([[0], [1]])}, "no training sequence has two items"),
    ],
)
def test_bad_domains_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CatalexError, match=message):
        made().fit([replace(circle(), **change)], seed=0, device="cpu")


def test_other_bad_input_is_refused(trained: RecGPT) -> None:
    with pytest.raises(CatalexError, match="hidden is not divisible by heads"):
        made(hidden=30, heads=4)
    with pytest.raises(CatalexError, match=r"found \[4, 4\]; allowed: numbers whose product is 8"):
        made(grid=[4, 4])
    wide = replace(circle(), vectors=np.ones((20, 40), np.float32))
    with pytest.raises(CatalexError, match="another width than those of the training"):
        trained.bind(wide)
    trained.bind(circle())
    with pytest.raises(CatalexError, match="a history is empty"):
        trained.recommend(Histories.from_lists([[]]), 5)
    with pytest.raises(CatalexError, match="at least one domain"):
        made().fit([], seed=0, device="cpu")
