"""Systems that score items, in recipes: content is loaded by need, transfer has the keys of the T5's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from catalex.artifacts import read_json
from catalex.data.domain import Domain
from catalex.errors import CatalexError
from catalex.pipelines.content import item_attributes, needs_of
from catalex.pipelines.evaluate import evaluate_stage
from catalex.pipelines.recipe import Recipe, read_recipe
from catalex.pipelines.run import run_recipe
from catalex.pipelines.validate import validate_blocks
from catalex.reporting.ledger import read
from support.tiny_story import DOMAINS, write_story

ONE, TWO = DOMAINS
SMALL = {"hidden": 16, "layers": 1, "heads": 2, "epochs": 1, "batch_size": 32, "max_history": 5}


def recipe_with(folder: Path, **blocks: Any) -> Recipe:
    """The tiny story's recipe with other blocks, in a workspace of its own."""
    path = write_story(folder)
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    values |= {"workspace": str(folder / "run"), "cache": str(folder / "cache"), **blocks}
    values = {key: value for key, value in values.items() if value is not None}
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return read_recipe(path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A recommender over content vectors: pre-trained, transferred, applied unseen, beside baselines."""
    recipe = recipe_with(
        tmp_path_factory.mktemp("story"),
        recommender={"name": "unisrec", "inner": 16, "experts": 2, **SMALL},
        pretrain={"domains": [ONE], "training": {"epochs": 2}},
        transfer={"domains": [TWO], "starts": ["pretrained", "scratch"], "by_domain": {TWO: {"epochs": 1}}},
        evaluate={"baselines": ["popularity", "gru4rec", "short"], "zero_shot": True, "examples": 1},
        baselines={
            "gru4rec": {"hidden": 8, "inner": 8, "epochs": 1},
            "short": {"name": "gru4rec", "max_history": 1, "hidden": 8, "inner": 8, "epochs": 1},
        },
    )
    run_recipe(recipe)
    return recipe


def test_every_system_stands_in_one_table(finished: Recipe) -> None:
    rows = read_json(finished.folder / "evaluate/summary.json")["results"]
    assert [(row["system"], row["name"], row["pretrained_on"]) for row in rows] == [
        ("unisrec-transferred", "unisrec", ONE),
        ("unisrec", "unisrec", ""),
        ("unisrec-zero-shot", "unisrec", ONE),
        ("popularity", "popularity", ""),
        ("gru4rec", "gru4rec", ""),
        ("short", "gru4rec", ""),
    ]


def test_only_what_is_needed_is_made(finished: Recipe) -> None:
    assert needs_of(finished) == {"vectors"}
    assert (finished.folder / "embed" / TWO).is_dir()
    assert not (finished.folder / "tokenize").exists()
    inputs = read_json(finished.folder / f"transfer/{TWO}/pretrained/seed-0/stage.json")["inputs"]
    assert set(inputs["vectors"]) == {TWO}
    assert inputs["identifiers"] is None
    baseline = read_json(finished.folder / f"baselines/{TWO}/gru4rec/seed-0/stage.json")["inputs"]
    assert "vectors" not in baseline


def test_the_transferred_one_began_from_the_pretrained_weights(finished: Recipe) -> None:
    configs = [
        read_json(finished.folder / f"transfer/{TWO}/{start}/seed-0/recommender/config.json")
        for start in ("pretrained", "scratch")
    ]
    assert [set(config["split_ids"]) for config in configs] == [{ONE, TWO}, {TWO}]
    facts = read_json(finished.folder / "pretrain/seed-0/facts.json")
    assert facts["curves"]["epoch"] == [1.0, 2.0]  # the overrides of `pretrain` were laid over the block


def test_lists_made_elsewhere_stand_beside_them(finished: Recipe, tmp_path: Path) -> None:
    """Our own lists, written to a file, give our own numbers."""
    ranks = pq.read_table(finished.folder / f"evaluate/{TWO}/short/seed-0/ranks.parquet")
    lists = pa.table({"user_id": ranks["user_id"], "items": ranks["top"]})
    pq.write_table(lists, tmp_path / "lists.parquet")
    lists = {"elsewhere": {TWO: str(tmp_path / "lists.parquet")}}
    recipe = finished.model_copy(update={"evaluate": finished.evaluate.model_copy(update={"lists": lists})})
    rows = {row["system"]: row for row in evaluate_stage(recipe)["results"]}
    for metric in ("recall@10", "ndcg@10"):
        assert rows["elsewhere"][metric] == pytest.approx(rows["short"][metric])


def test_leaving_the_history_out_is_another_measurement(
    finished: Recipe, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is judged anew, without training, can only help a target that is no repeat, and its lines say so.
    Asked for once more nothing is measured, hence nothing recorded, which is said."""
    changed = finished.evaluate.model_copy(update={"exclude_history": True, "baselines": ["short"]})
    recipe = finished.model_copy(update={"evaluate": changed})
    before = pq.read_table(finished.folder / f"evaluate/{TWO}/short/seed-0/ranks.parquet")
    trained = (finished.folder / f"baselines/{TWO}/short/seed-0/facts.json").stat().st_mtime_ns
    try:
        evaluate_stage(recipe, tmp_path / "ledger.jsonl")
        lines = read(tmp_path / "ledger.jsonl")
        assert "gets no line" not in capfd.readouterr().err
        evaluate_stage(recipe, tmp_path / "ledger.jsonl")
        assert f"short on {TWO}: judged earlier, so" in capfd.readouterr().err
        assert read(tmp_path / "ledger.jsonl") == lines
        after = pq.read_table(finished.folder / f"evaluate/{TWO}/short/seed-0/ranks.parquet")
    finally:
        evaluate_stage(finished)
    one, other = before["rank"].to_numpy(), after["rank"].to_numpy()
    assert (other <= one).all()
    assert (other < one).any()
    assert {line.excluded for line in lines} == {"history"}
    assert (finished.folder / f"baselines/{TWO}/short/seed-0/facts.json").stat().st_mtime_ns == trained
    again = pq.read_table(finished.folder / f"evaluate/{TWO}/short/seed-0/ranks.parquet")
    assert again.equals(before)


def test_a_recipe_of_baselines_alone_needs_no_content(tmp_path: Path) -> None:
    recipe = recipe_with(
        tmp_path,
        recommender=None,
        pretrain=None,
        transfer=None,
        evaluate={"domains": [ONE], "baselines": ["popularity"]},
        baselines={},
    )
    assert needs_of(recipe) == frozenset()
    run_recipe(recipe)
    assert sorted(path.name for path in recipe.folder.iterdir()) == [
        "baselines",
        "evaluate",
        "prepare",
        "report",
    ]


def test_attributes_are_categories_and_brands_that_items_share(finished: Recipe) -> None:
    domain = Domain.load(finished.folder / "prepare" / ONE)
    found = item_attributes(domain)
    assert len(found) == len(domain)
    rows = domain.items.select(["categories", "brand"]).to_pylist()
    named = [
        {f"category {n}" for n in r["categories"] or ()} | ({f"brand {r['brand']}"} if r["brand"] else set())
        for r in rows
    ]
    for one in range(len(domain)):
        for other in range(one):
            shared = set(found[one].tolist()) & set(found[other].tolist())
            assert len(shared) == len(named[one] & named[other])


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (
            {"recommender": {"name": "gru4rec"}},
            r"cannot be transferred.*found 'gru4rec'.*unisrec.*starts: \[scratch\]",
        ),
        (
            {"evaluate": {"baselines": ["mine"]}, "baselines": {"mine": {"name": "t5"}}},
            "a generative recommender is no baseline",
        ),
        ({"evaluate": {"baselines": ["mine"]}, "baselines": {}}, "unknown recommender 'mine'"),
        (
            {"evaluate": {"baselines": ["My own"]}, "baselines": {"My own": {"name": "gru4rec"}}},
            "a label uses lower-case letters",
        ),
        ({"evaluate": {"baselines": [], "zero_shot": True}, "pretrain": None, "transfer": None}, "never saw"),
        ({"image_encoder": {"name": "efficientnet"}}, "unknown encoder 'efficientnet'"),
    ],
)
def test_what_cannot_work_is_refused_at_once(tmp_path: Path, blocks: dict[str, Any], message: str) -> None:
    with pytest.raises(CatalexError, match=message):
        validate_blocks(recipe_with(tmp_path, **{"baselines": {}, "evaluate": {"baselines": []}, **blocks}))
