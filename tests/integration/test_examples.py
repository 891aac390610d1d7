"""The example of a recommender of one's own runs, and follows the rules of every entry of the table."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catalex.data.histories import Histories
from catalex.recommenders import RECOMMENDERS, load_recommender, make_recommender
from support.worlds import domain, ring

FILE = Path(__file__).resolve().parents[2] / "examples" / "own_recommender.py"


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    return runpy.run_path(str(FILE))


def test_it_prints_two_rows(example: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    example["main"]()
    rows = dict(line.split()[::2][:2] for line in capsys.readouterr().out.splitlines())
    assert set(rows) == {"together", "popularity"}
    assert float(rows["together"]) > float(rows["popularity"])


def test_a_line_in_the_table_is_all_it_takes(
    example: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(RECOMMENDERS, "together", example["Together"])
    world = domain(ring())
    recommender = make_recommender({"name": "together", "fading": 0.5}, "here")
    facts = recommender.fit([world], seed=0, device="cpu")
    assert facts["valid_ndcg@10"] > 0.3
    recommender.save(tmp_path)
    again = load_recommender(tmp_path)
    histories = world.validation.histories
    np.testing.assert_array_equal(
        again.recommend(histories, 5).items, recommender.recommend(histories, 5).items
    )
    assert again.split_ids == {"ring": world.split_id}


def test_its_scores_are_faded_cosines(example: dict[str, Any]) -> None:
    world = domain(ring())
    recommender = example["Together"](example["TogetherOptions"](fading=0.5))
    recommender.fit([world], seed=0, device="cpu")
    users = [set(world.training[user].tolist()) for user in range(len(world.training))]
    bought = np.array([[item in own for own in users] for item in range(world.items)], float)

    def cosine(one: int, other: int) -> float:
        norm = np.linalg.norm(bought[one]) * np.linalg.norm(bought[other])
        return float(bought[one] @ bought[other] / norm) if norm else 0.0

    found = recommender.score(Histories.from_lists([[4, 7], [3]]))
    expected = [
        [0.5 * cosine(4, item) + cosine(7, item) for item in range(20)],
        [cosine(3, i) for i in range(20)],
    ]
    np.testing.assert_allclose(found, expected, atol=1e-6)
