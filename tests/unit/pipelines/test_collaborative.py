"""Collaborative vectors for tokenizers: where they come from, and what they may not have seen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catalex.data.columns import TRAIN
from catalex.data.histories import Histories, SplitHistories
from catalex.errors import CatalexError
from catalex.pipelines.collaborative import check_collaborative, collaborative_vectors, training_only
from catalex.recommenders.sasrec import SASRec, SASRecOptions
from catalex.tokenizers.base import CollaborativeNeed, CollaborativeOptions
from support.worlds import ring, with_held_out

FAST = {"epochs": 2, "batch_size": 16, "max_history": 6, "layers": 1}


@dataclass(frozen=True)
class World:
    """As much of a domain as is read."""

    name: str
    sequences: SplitHistories
    split_id: str

    def __len__(self) -> int:
        return 20


def world(sequences: SplitHistories | None = None) -> Any:
    sequences = ring() if sequences is None else sequences
    return World("ring", sequences, sequences.split_id)


def need(width: int = 6, **source: Any) -> CollaborativeNeed:
    source = {"recommender": FAST, **source}
    return CollaborativeNeed(width, CollaborativeOptions.parse(source, "tokenizer.collaborative"))


def test_a_sasrec_is_trained_in_the_width_that_is_needed() -> None:
    found = collaborative_vectors(need(), world(), seed=0, device="cpu")
    assert found.shape == (20, 6)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, collaborative_vectors(need(), world(), seed=0, device="cpu"))
    assert not np.array_equal(found, collaborative_vectors(need(), world(), seed=1, device="cpu"))


def test_held_out_interactions_change_nothing() -> None:
    other = with_held_out(ring(), np.random.default_rng(0).integers(0, 20, 1000))
    assert (other.parts != TRAIN).any()
    one, two = (collaborative_vectors(need(), world(w), seed=0, device="cpu") for w in (ring(), other))
    np.testing.assert_array_equal(one, two)


def test_the_best_epoch_is_chosen_by_the_last_training_items() -> None:
    training = Histories.from_lists([[1, 2, 3], [4, 5], [], [6, 7, 8, 9]])
    parts = np.full(len(training.items), TRAIN, np.int64)
    found = training_only(World("w", SplitHistories(training, parts), "split"))  # type: ignore[arg-type]
    assert [found.training[user].tolist() for user in range(4)] == [[1, 2], [4, 5], [], [6, 7, 8]]
    assert found.validation.users.tolist() == [0, 3]
    assert found.validation.targets.tolist() == [3, 9]
    assert [found.validation.histories[row].tolist() for row in range(2)] == [[1, 2], [6, 7, 8]]


def test_a_trained_folder_is_read(tmp_path: Path) -> None:
    recommender = SASRec(SASRecOptions.parse({**FAST, "hidden": 6}, "x"))
    recommender.fit([training_only(world())], seed=3, device="cpu")
    recommender.save(tmp_path)
    folders = {"ring": str(tmp_path)}
    found = collaborative_vectors(need(folders=folders), world(), seed=0, device="cpu")
    assert recommender.model is not None
    np.testing.assert_array_equal(found, recommender.model.candidates().detach().numpy())
    with pytest.raises(CatalexError, match=r"another size.*\[20, 8\].*hidden equal to the latent width"):
        collaborative_vectors(need(8, folders=folders), world(), seed=0, device="cpu")
    elsewhere = with_held_out(ring(), np.zeros(1000, np.int64))
    with pytest.raises(CatalexError, match="another split of 'ring'"):
        collaborative_vectors(need(folders=folders), world(elsewhere), seed=0, device="cpu")


def test_bad_settings_are_refused_before_training() -> None:
    with pytest.raises(CatalexError, match=r"tokenizer\.collaborative\.recommender: unknown key 'epoch'"):
        check_collaborative(need(recommender={"epoch": 2}), ["ring"])
    with pytest.raises(CatalexError, match="does not learn from domain 'toys'"):
        check_collaborative(need(folders={"toys": "x"}), ["ring"])
    with pytest.raises(CatalexError, match="hidden is not divisible by heads"):
        check_collaborative(need(5), ["ring"])
