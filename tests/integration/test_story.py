"""The whole story, tiny: every stage runs, nothing runs twice, and the numbers can be recomputed by hand."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from catalex.artifacts import hash_file, read_json
from catalex.bundle import Bundle
from support.tiny_story import DOMAINS, ITEMS

SYSTEMS = ("t5-transferred", "t5", "popularity", "transitions", "sasrec")
SKIPPED = ": unchanged, skipped"
RUNNING = ": running"


def _hashes(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): hash_file(path) for path in folder.rglob("*") if path.is_file()}


def _ended(text: str, ending: str) -> list[str]:
    return [line.removesuffix(ending) for line in text.splitlines() if line.endswith(ending)]


def _verbs(titles: list[str]) -> set[str]:
    return {title.split()[0] for title in titles}


def _ranks(finished: Path, system: str) -> list[dict[str, Any]]:
    return pq.read_table(finished / f"run/evaluate/{DOMAINS[1]}/{system}/seed-0/ranks.parquet").to_pylist()


def _summary(finished: Path) -> dict[str, dict[str, Any]]:
    return {row["system"]: row for row in read_json(finished / "run/evaluate/summary.json")["results"]}


def test_every_stage_is_done(finished: Path) -> None:
    run = finished / "run"
    one, two = DOMAINS
    wanted = [
        *(f"{verb}/{year}" for verb in ("prepare", "embed") for year in DOMAINS),
        "tokenize",
        "pretrain/seed-0",
        *(f"transfer/{two}/{start}/seed-0" for start in ("pretrained", "scratch")),
        *(f"baselines/{two}/{name}/seed-0" for name in ("popularity", "transitions", "sasrec")),
        *(f"evaluate/{two}/{system}/seed-0" for system in SYSTEMS),
        f"bundle/{two}.stage",
    ]
    found = sorted(str(path.parent.relative_to(run)) for path in run.rglob("stage.json"))
    assert found == sorted(wanted)
    assert not list(run.rglob("partial"))
    assert not list(run.rglob("*.tmp"))
    assert not (run / "bundle" / one).exists()
    for folder in wanted:
        for name, digest in read_json(run / folder / "stage.json")["outputs"].items():
            assert hash_file(run / folder / name) == digest


def test_a_second_run_skips_everything_and_changes_nothing(
    finished: Path, run_story: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    before = _hashes(copy)
    run_story(copy)
    said = capfd.readouterr().err
    stages = len(list((copy / "run").rglob("stage.json")))
    assert len(_ended(said, SKIPPED)) == stages
    assert _ended(said, RUNNING) == []
    after = _hashes(copy)
    assert {name for name in {*before, *after} if before.get(name) != after.get(name)} <= {
        f"run/report/report.{kind}" for kind in ("html", "json", "md")
    }  # the report carries its date


@pytest.mark.parametrize("system", SYSTEMS)
def test_metrics_are_those_of_the_ranks(finished: Path, system: str) -> None:
    ranks = [row["rank"] for row in _ranks(finished, system)]
    row = _summary(finished)[system]
    assert row["users"] == len(ranks) > 60
    for k in (5, 10):
        hits = [rank for rank in ranks if 1 <= rank <= k]
        assert row[f"recall@{k}"] == pytest.approx(len(hits) / len(ranks), abs=1e-12)
        gains = sum(1 / math.log2(1 + rank) for rank in hits)
        assert row[f"ndcg@{k}"] == pytest.approx(gains / len(ranks), abs=1e-12)
    reciprocal = sum(1 / rank for rank in ranks if 1 <= rank <= 10)
    assert row["mrr@10"] == pytest.approx(reciprocal / len(ranks), abs=1e-12)


@pytest.mark.parametrize("system", SYSTEMS)
def test_only_items_of_the_catalogue_and_none_twice(finished: Path, system: str) -> None:
    held_out = _held_out(finished)
    for row in _ranks(finished, system):
        assert len(row["top"]) == 10
        assert len(set(row["top"])) == 10
        assert all(0 <= item < ITEMS for item in row["top"])
        assert row["target"] == held_out[row["user_id"]]
        place = row["top"].index(row["target"]) + 1 if row["target"] in row["top"] else None
        if place is None:
            assert row["rank"] == 0 or row["rank"] > 10
        else:  # a system that scores all items counts ties against itself
            assert row["rank"] == place if system.startswith("t5") else row["rank"] >= place


def _held_out(finished: Path) -> dict[int, int]:
    """Last item of each user, from the prepared table."""
    last: dict[int, int] = {}
    for row in pq.read_table(finished / f"run/prepare/{DOMAINS[1]}/interactions.parquet").to_pylist():
        last[row["user_id"]] = row["item_id"]
    return last


def test_the_bundle_recommends_titles(finished: Path) -> None:
    bundle = Bundle.load(finished / "run" / "bundle" / DOMAINS[1])
    found = bundle.recommend([3, 1, 4], 10)
    titles = pq.read_table(finished / f"run/prepare/{DOMAINS[1]}/items.parquet")["title"].to_pylist()
    assert len({s.item_id for s in found}) == 10
    assert [s.title for s in found] == [titles[s.item_id] for s in found]
    assert [s.score for s in found] == sorted((s.score for s in found), reverse=True)


def test_the_bundle_answers_as_evaluation_did(finished: Path) -> None:
    bundle = Bundle.load(finished / "run" / "bundle" / DOMAINS[1])
    events = pq.read_table(finished / f"run/prepare/{DOMAINS[1]}/interactions.parquet").to_pylist()
    for row in _ranks(finished, "t5-transferred")[:5]:
        history = [event["item_id"] for event in events if event["user_id"] == row["user_id"]][:-1]
        assert [s.item_id for s in bundle.recommend(history, 10)] == row["top"]


def test_the_report_needs_nothing_but_itself(finished: Path) -> None:
    html = (finished / "run/report/report.html").read_text(encoding="utf-8")
    assert html.lstrip().lower().startswith("<!doctype html")
    assert "tiny" in html
    for system in SYSTEMS:
        assert system in html
    loaded = re.findall(r"""(?:\bsrc|<link[^>]*\bhref)\s*=\s*["']([^"']*)""", html)
    assert all(address.startswith(("data:", "#")) for address in loaded), loaded
    assert "@import" not in html
    assert not re.search(r"url\(\s*['\"]?https?:", html)
    values = json.loads((finished / "run/report/report.json").read_text(encoding="utf-8"))
    assert {row["system"] for row in values["results"]} == set(SYSTEMS)


def test_the_report_shows_items_that_share_their_first_codes(finished: Path) -> None:
    values = json.loads((finished / "run/report/report.json").read_text(encoding="utf-8"))
    assert set(values["prefixes"]) == set(DOMAINS)
    rows = pq.read_table(finished / "run/tokenize/identifiers.parquet").to_pylist()
    for name, shown in values["prefixes"].items():
        titles = pq.read_table(finished / f"run/prepare/{name}/items.parquet")["title"].to_pylist()
        codes = {titles[row["item_id"]]: row["codes"] for row in rows if row["domain"] == name}
        assert len(codes) == ITEMS, "titles tell the items apart"
        assert len(shown["queries"]) == 4
        for query in shown["queries"]:
            assert codes[query["title"]] == query["codes"]
            for item in query["items"]:
                assert codes[item["title"]][: item["depth"]] == query["codes"][: item["depth"]]


LATER = {"pretrain", "transfer", "evaluate", "bundle"}


@pytest.mark.parametrize(
    ("override", "verbs"),
    [
        ("note=changed", set()),
        ("recommender.decode_batch=7", LATER),
        ("transfer.training.epochs=1", {"transfer", "evaluate", "bundle"}),
        ("evaluate.ks=[5,10,3]", {"evaluate"}),
        ("baselines.sasrec.epochs=1", {"baseline", "evaluate"}),
        ("tokenizer.iterations=1", {"tokenize", *LATER}),
        ("encoder.width=12", {"embed", "tokenize", *LATER}),
    ],
)
def test_one_changed_key_reruns_what_depends_on_it(
    override: str,
    verbs: set[str],
    finished: Path,
    run_story: Any,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "catalex.pipelines.run.report_stage", lambda recipe: recipe.folder
    )  # slow, always made anew
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    run_story(copy, override)
    said = capfd.readouterr().err
    again = _ended(said, RUNNING)
    assert _verbs(again) == verbs
    rest = _ended(said, SKIPPED)
    assert len(again) + len(rest) == len(list((finished / "run").rglob("stage.json")))
    if "baseline" in verbs:  # one baseline and its evaluation, none of the others
        assert again == [
            f"baseline sasrec on {DOMAINS[1]}, seed 0",
            f"evaluate sasrec on {DOMAINS[1]}, seed 0",
        ]
    elif "evaluate" in verbs and override.startswith(("recommender", "tokenizer", "encoder", "transfer")):
        assert [title.split()[1] for title in again if title.startswith("evaluate")] == [
            "t5-transferred",
            "t5",
        ]


def test_a_damaged_file_reruns_its_stage_alone(
    finished: Path, run_story: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str], kill_resume: Any
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    (copy / "run" / "embed" / DOMAINS[0] / "vectors.safetensors").write_bytes(b"damaged")
    run_story(copy)
    assert _verbs(_ended(capfd.readouterr().err, RUNNING)) == {"embed"}
    assert all(
        kill_resume.compare(finished / "run", copy / "run", stage)[1] == [] for stage in kill_resume.STAGES
    )
