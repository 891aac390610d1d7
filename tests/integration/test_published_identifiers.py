"""Identifiers that do not come from the common tokenizer: published ones, and those of adapted tokenizers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from catalex.artifacts import read_json, write_parquet
from catalex.bundle import MANIFEST, Bundle
from catalex.errors import CatalexError
from catalex.pipelines.doctor import examine
from catalex.pipelines.embed import load_vectors
from catalex.pipelines.recipe import Recipe, read_recipe
from catalex.pipelines.run import run_recipe
from catalex.pipelines.tokenize import join_spaces, print_health, tokenize_stage
from catalex.pipelines.workspace import Workspace
from catalex.tokenizers import CodeSpace, load_tokenizer
from catalex.tokenizers.identifiers import IdentifierTable
from catalex.types import Codes
from support.tiny_story import DOMAINS, ITEMS, write_story

pytest.importorskip("sklearn", reason="the tiny domains are embedded by tfidf-svd")

ONE, TWO = DOMAINS
GROUP = 5
"""Items that share their published codes."""


def published_codes(items: int = ITEMS) -> list[list[str]]:
    """Codes as others write them: GROUP items after another share them."""
    return [[f"<a_{item // GROUP % 4}>", f"<b_{3 * (item // GROUP)}>"] for item in range(items)]


def write_published(path: Path, codes: list[list[str]], extra: str = "other") -> Path:
    """A file with the rows of two methods, in no order; those of `extra` are of no use."""
    rows = [{"method": "theirs", "item_id": item, "codes": row} for item, row in enumerate(codes)]
    rows += [{"method": extra, "item_id": item, "codes": ["<a_0>"]} for item in range(3)]
    write_parquet(
        path, pa.Table.from_pylist([rows[i] for i in np.random.default_rng(0).permutation(len(rows))])
    )
    return path


def read_changed(recipe: Path, folder: Path, changes: dict[str, Any]) -> Recipe:
    """The tiny recipe with some blocks replaced (None removes one), with its workspace in `folder`."""
    values = yaml.safe_load(recipe.read_text(encoding="utf-8")) | changes
    values |= {"workspace": str(folder / "run"), "cache": str(folder / "cache")}
    path = folder / "changed.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not None}), encoding="utf-8")
    return read_recipe(path)


def with_published(folder: Path, conflicts: str = "digit") -> dict[str, Any]:
    """Blocks for the published identifiers in `folder`."""
    files = {year: {"file": str(folder / f"{year}.parquet"), "method": "theirs"} for year in DOMAINS}
    return {
        "tokenizer": None,
        "tokenize": {"conflicts": conflicts, "published": files},
        "evaluate": {"baselines": ["popularity"], "examples": 1},
    }


Story = tuple[Recipe, Workspace]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """A finished run over published identifiers, its lines in a ledger."""
    folder = tmp_path_factory.mktemp("published")
    for year in DOMAINS:
        write_published(folder / f"{year}.parquet", published_codes())
    recipe = read_changed(write_story(folder), folder, with_published(folder))
    run_recipe(recipe, folder / "ledger.jsonl")
    return recipe, Workspace(recipe.folder)


# --- published identifiers ----------------------------------------------------------------------------------


def test_identifiers_are_the_published_codes_and_a_digit(published: Story) -> None:
    _, place = published
    table = IdentifierTable.load(place.tokenized / "identifiers.parquet")
    wanted = [[i // GROUP % 4, 3 * (i // GROUP), i % GROUP] for i in range(ITEMS)]
    assert table.unique
    assert [table.of(year).tolist() for year in DOMAINS] == [wanted, wanted]
    assert table.space.sizes == (4, 3 * (ITEMS // GROUP - 1) + 1, 256)


def test_health_counts_what_needs_no_tokenizer(published: Story, capsys: pytest.CaptureFixture[str]) -> None:
    _, place = published
    found = read_json(place.tokenized / "health.json")
    row = found["domains"][ONE]
    assert row["collisions_before"][-1]["distinct"] == ITEMS // GROUP
    assert row["collisions_before"][-1]["largest"] == GROUP
    assert row["collisions_after"][-1]["rate"] == 0
    assert row["moved"] == 0
    assert row["error"] is row["neighbours"]["reconstruction"] is None
    assert 0 < row["neighbours"]["prefix"] < 1
    assert row["transitions"]["item"] < 0
    print_health(found)
    assert "none" in capsys.readouterr().out


def test_no_tokenizer_is_named_anywhere(published: Story) -> None:
    recipe, place = published
    assert recipe.tokenizer == {"name": "published"}
    assert not (place.tokenized / "tokenizer").exists()
    lines = [yaml.safe_load(x) for x in (place.root.parent / "ledger.jsonl").read_text().splitlines()]
    named = {(line["system"], line["tokenizer"], line["collision_before"]) for line in lines}
    rate = (ITEMS - ITEMS // GROUP) / ITEMS
    assert named == {
        ("t5", "published:theirs", rate),
        ("t5-transferred", "published:theirs", rate),
        ("popularity", None, None),
    }
    assert "rqkmeans" not in (place.reported / "report.html").read_text(encoding="utf-8")


def test_the_bundle_recommends_and_says_that_it_takes_no_new_items(published: Story) -> None:
    _, place = published
    folder = place.root / "bundle" / TWO
    bundle = Bundle.load(folder)
    assert bundle.manifest["new_items"] is False
    assert not (folder / "tokenizer").exists()
    assert read_json(folder / "recipe.json")["tokenizer"] == {"name": "published"}
    found = bundle.recommend([3, 1, 4], 10)
    assert len({s.item_id for s in found}) == 10
    for suggestion in found:
        assert suggestion.identifier[2] == suggestion.item_id % GROUP
    finding = list(examine(folder))[-1]
    assert finding.good
    assert finding.text.startswith(f"bundle for {TWO}")


def test_ranks_count_items_not_identifiers(published: Story) -> None:
    _, place = published
    rows = pq.read_table(place.evaluated(TWO, "t5", 0) / "ranks.parquet").to_pylist()
    assert all(len(set(row["top"])) == 10 for row in rows)
    assert all(
        row["rank"] == row["top"].index(row["target"]) + 1 for row in rows if row["target"] in row["top"]
    )


@pytest.fixture
def embedded(published: Story, tmp_path: Path) -> Callable[..., Recipe]:
    """Makes a prepared and embedded copy of the published story, to change at will."""
    source = published[1].root.parent
    for year in DOMAINS:
        shutil.copy(source / f"{year}.parquet", tmp_path)
        for verb in ("prepare", "embed"):
            shutil.copytree(source / "run" / verb / year, tmp_path / "run" / verb / year)

    def make(**changes: Any) -> Recipe:
        return read_changed(source / "tiny.yaml", tmp_path, changes)

    return make


def test_only_another_file_or_method_runs_the_stage_again(
    embedded: Callable[..., Recipe], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def ran() -> bool:
        capfd.readouterr()
        tokenize_stage(embedded(**with_published(tmp_path)))
        return "running" in capfd.readouterr().err

    assert [ran(), ran()] == [True, False]
    write_published(tmp_path / f"{ONE}.parquet", published_codes()[::-1])
    assert [ran(), ran()] == [True, False]


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda folder: {}, r"items have 12 distinct identifiers.*tokenize\.conflicts: digit"),
        (
            lambda folder: write_published(folder / f"{TWO}.parquet", published_codes(59)),
            "item 59 has no row",
        ),
        (lambda folder: (folder / f"{TWO}.parquet").unlink(), "the file does not exist"),
    ],
)
def test_a_refused_file_leaves_the_earlier_identifiers(
    spoil: Callable[[Path], object], sentence: str, embedded: Callable[..., Recipe], tmp_path: Path
) -> None:
    tokenize_stage(embedded(**with_published(tmp_path)))
    before = {p: p.read_bytes() for p in (tmp_path / "run/tokenize").rglob("*") if p.is_file()}
    spoil(tmp_path)
    with pytest.raises(CatalexError, match=sentence):
        tokenize_stage(embedded(**with_published(tmp_path, "none")))
    after = {p: p.read_bytes() for p in (tmp_path / "run/tokenize").rglob("*") if p.is_file()}
    assert after == before


def test_unique_published_identifiers_need_no_digit(embedded: Callable[..., Recipe], tmp_path: Path) -> None:
    for year in DOMAINS:
        write_published(
            tmp_path / f"{year}.parquet", [[f"<a_{i % 8}>", f"<b_{i // 8}>"] for i in range(ITEMS)]
        )
    tokenize_stage(embedded(**with_published(tmp_path, "none")))
    table = IdentifierTable.load(tmp_path / "run/tokenize/identifiers.parquet")
    assert table.of(TWO).tolist() == [[i % 8, i // 8] for i in range(ITEMS)]


# --- adapted tokenizers -------------------------------------------------------------------------------------


def codes_of(place: Workspace, folder: Path) -> Codes:
    return load_tokenizer(folder).encode(load_vectors(place, TWO))


def test_an_adapted_domain_has_a_tokenizer_of_its_own(
    embedded: Callable[..., Recipe], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Tokenizer from year one, rotated onto year two: identifiers, health, recommender and bundle agree."""
    short = {"domains": [TWO], "starts": ["scratch"], "training": {"epochs": 1}}
    recipe = embedded(
        tokenize={"domains": [ONE], "adapt": {TWO: "rotate"}},
        pretrain=None,
        transfer=short,
        evaluate={"baselines": [], "examples": 0},
    )
    run_recipe(recipe, tmp_path / "ledger.jsonl")
    place = Workspace(recipe.folder)
    own, common = (place.tokenized / name for name in (f"adapted/{TWO}", "tokenizer"))
    after = IdentifierTable.load(place.tokenized / "identifiers.parquet")
    assert not np.array_equal(codes_of(place, own), codes_of(place, common))
    moved = (codes_of(place, own) != after.of(TWO)).any(axis=1).sum()
    assert read_json(place.tokenized / "health.json")["domains"][TWO]["moved"] == moved
    assert after.versions[ONE][0] != after.versions[TWO][0]
    outputs = read_json(place.tokenized / "stage.json")["outputs"]
    on_disk = {p.relative_to(place.tokenized).as_posix() for p in place.tokenized.rglob("*") if p.is_file()}
    assert set(outputs) == on_disk - {"stage.json", "timing.json"}
    assert [
        yaml.safe_load(line)["tokenizer"] for line in (tmp_path / "ledger.jsonl").read_text().splitlines()
    ] == [f"rqkmeans({ONE})+rotate"]
    bundle = Bundle.load(place.root / "bundle" / TWO)
    assert bundle.manifest["new_items"] is True
    assert np.array_equal(codes_of(place, bundle.folder / "tokenizer"), codes_of(place, own))
    assert (bundle.folder / MANIFEST).is_file()
    capfd.readouterr()
    tokenize_stage(recipe)
    assert "skipped" in capfd.readouterr().err
    tokenize_stage(embedded(tokenize={"domains": [ONE]}))  # no longer adapted: nothing of it stays
    assert not (place.tokenized / "adapted").exists()


def test_grown_domains_get_experts_of_their_own(embedded: Callable[..., Recipe], tmp_path: Path) -> None:
    options = {"name": "unitok", "levels": 2, "codebook_size": 8, "epochs": 1}
    adapted = {ONE: "grow", TWO: "grow"}
    recipe = embedded(tokenizer=options, tokenize={"domains": [ONE], "adapt": adapted})
    tokenize_stage(recipe)
    folder = tmp_path / "run/tokenize"
    common, one, two = (load_tokenizer(folder / x) for x in ("tokenizer", f"adapted/{ONE}", f"adapted/{TWO}"))
    (position,) = [
        p for p, (a, b) in enumerate(zip(common.space.sizes, one.space.sizes, strict=True)) if a < b
    ]
    experts = common.space.sizes[position]
    table = IdentifierTable.load(folder / "identifiers.parquet")
    assert set(table.of(ONE)[:, position]) == {experts}
    assert set(table.of(TWO)[:, position]) == {experts + 1}
    assert table.space == two.space


def test_joined_spaces_hold_all_codes_and_keep_shared_levels_equal() -> None:
    one, two = CodeSpace((4, 8, 8), (0, 1, 1)), CodeSpace((5, 8, 9), (0, 1, 1))
    assert join_spaces([one, two]) == CodeSpace((5, 9, 9), (0, 1, 1))
    assert join_spaces([one]) == one
