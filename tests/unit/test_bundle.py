"""Bundles: refused when one byte differs, and answers by source id or by number."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import catalex
from catalex.artifacts import read_json, write_json, write_parquet
from catalex.bundle import FORMAT, MANIFEST, Bundle, write_bundle
from catalex.data import columns as c
from catalex.data.histories import Histories
from catalex.errors import CatalexError
from catalex.recommenders.generative import Generative, GenerativeOptions
from catalex.tokenizers.identifiers import IdentifierTable
from support.worlds import SPACE, domain, identifiers, ring

ITEMS = 20
RING = domain(ring())


@pytest.fixture(scope="module")
def recommender() -> Generative:
    options = {
        "model": {"layers": 1, "hidden": 16, "feed_forward": 32, "heads": 2, "head_width": 8},
        "training": {"epochs": 1, "batch_size": 32},
        "beam": ITEMS,
    }
    found = Generative(GenerativeOptions.parse(options, "t5"), SPACE)
    found.fit([RING], seed=0, device="cpu")
    return found


def write(folder: Path, recommender: Generative, scratch: Path) -> Path:
    rows = [
        {c.ITEM_ID: i, c.SOURCE_ID: f"B{i:03}", c.TITLE: f"Title {i}" if i else None, c.KEYWORDS: "soap"}
        for i in range(ITEMS)
    ]
    write_parquet(scratch / "prepared" / c.ITEMS_FILE, pa.Table.from_pylist(rows, schema=c.ITEMS_SCHEMA))
    write_json(scratch / "tokenizer/config.json", {"name": "rqkmeans"})
    table = IdentifierTable(SPACE).add("other", identifiers(5), "v0").add("ring", identifiers(ITEMS), "v1")
    write_bundle(
        folder,
        domain="ring",
        split_id=RING.split_id,
        prepared=scratch / "prepared",
        identifiers=table,
        tokenizer=scratch / "tokenizer",
        recommender=recommender,
        recipe={"name": "mini"},
    )
    return folder


@pytest.fixture(scope="module")
def whole(recommender: Generative, tmp_path_factory: pytest.TempPathFactory) -> Path:
    scratch = tmp_path_factory.mktemp("bundle")
    return write(scratch / "bundle", recommender, scratch)


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


# --- answering ----------------------------------------------------------------------------------------------


def test_answers_as_the_recommender_does(whole: Path, recommender: Generative) -> None:
    opened = Bundle.load(whole)
    found = opened.recommend([3, 4], 7)
    expected = recommender.recommend(Histories.from_lists([[3, 4]]), 7)
    assert [s.item_id for s in found] == expected.items[0].tolist()
    assert [s.score for s in found] == pytest.approx(expected.scores[0].tolist())
    own = identifiers(ITEMS)
    for suggestion in found:
        assert suggestion.identifier == tuple(own[suggestion.item_id].tolist())
        assert suggestion.title == (f"Title {suggestion.item_id}" if suggestion.item_id else "soap")


def test_a_longer_list_than_the_catalogue_has_every_item_once(whole: Path) -> None:
    found = Bundle.load(whole).recommend([3], ITEMS + 5)
    assert sorted(s.item_id for s in found) == list(range(ITEMS))
    assert all(np.isfinite(s.score) for s in found)


def test_items_of_the_history_can_be_left_out(whole: Path) -> None:
    bundle = Bundle.load(whole)
    every, new = bundle.recommend([3, 4], ITEMS), bundle.recommend([3, 4], ITEMS, exclude_history=True)
    assert [s.item_id for s in new] == [s.item_id for s in every if s.item_id not in (3, 4)]
    assert len(every) == ITEMS


def test_items_by_source_id_and_by_number(whole: Path) -> None:
    opened = Bundle.load(whole)
    assert [opened.item(name) for name in ("B007", "#7", "#0")] == [7, 7, 0]
    for wrong in ("#20", "#-1", "#x", "#²"):
        with pytest.raises(CatalexError, match=r"no item.*#0 to #19"):
            opened.item(wrong)
    with pytest.raises(CatalexError, match=r"no item 'B0007'.*[Dd]id you mean 'B00"):
        opened.item("B0007")
    with pytest.raises(CatalexError, match=r"[Gg]ive source ids"):
        opened.item("zzz")


def test_an_empty_history_and_no_items_are_refused(whole: Path) -> None:
    opened = Bundle.load(whole)
    with pytest.raises(CatalexError, match="history is empty"):
        opened.recommend([])
    with pytest.raises(CatalexError, match=r"-k: .*positive.*found 0"):
        opened.recommend([1], 0)


def test_the_bundle_holds_its_own_domain_only(whole: Path) -> None:
    opened = Bundle.load(whole)
    assert opened.identifiers.domains == ["ring"]
    assert opened.manifest["identifier_version"] == "v1"
    assert opened.manifest["split_id"] == RING.split_id


# --- refusing -----------------------------------------------------------------------------------------------


def test_a_flipped_byte_in_any_file_is_told_by_name(copy: Path) -> None:
    names = list(read_json(copy / MANIFEST)["files"])
    assert {p.relative_to(copy).as_posix() for p in copy.rglob("*") if p.is_file()} == {*names, MANIFEST}
    for name in names:
        path = copy / name
        good = path.read_bytes()
        bad = bytearray(good)
        bad[len(bad) // 2] ^= 1
        path.write_bytes(bad)
        with pytest.raises(CatalexError, match=rf"{path.name}: the file differs from the bundle's manifest"):
            Bundle.load(copy)
        path.write_bytes(good)
    Bundle.load(copy)


def test_a_missing_file_is_told_by_name(copy: Path) -> None:
    (copy / "identifiers.parquet").unlink()
    with pytest.raises(CatalexError, match=r"identifiers\.parquet: a file of the bundle is missing"):
        Bundle.load(copy)


@pytest.mark.parametrize("manifest", [{"format": FORMAT + 1, "catalex": "9.9"}, {}, ["no mapping"]])
def test_another_format_is_refused_with_both_versions(copy: Path, manifest: object) -> None:
    write_json(copy / MANIFEST, manifest)
    with pytest.raises(CatalexError, match=rf"written by another version.*catalex {catalex.__version__}"):
        Bundle.load(copy)


@pytest.mark.parametrize("key", ["files", "domain", "split_id"])
def test_a_manifest_without_a_key_is_refused(copy: Path, key: str) -> None:
    manifest = read_json(copy / MANIFEST)
    del manifest[key]
    write_json(copy / MANIFEST, manifest)
    with pytest.raises(CatalexError, match=f"key '{key}' is missing"):
        Bundle.load(copy)


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CatalexError, match=r"holds no manifest\.json.*catalex bundle RECIPE"):
        Bundle.load(tmp_path)


# --- writing ------------------------------------------------------------------------------------------------


def test_writing_again_replaces_the_whole_folder(copy: Path, recommender: Generative, tmp_path: Path) -> None:
    (copy / "stale.txt").write_text("left over")
    write(copy, recommender, tmp_path)
    assert not (copy / "stale.txt").exists()
    assert not list(tmp_path.glob(".copy.*"))
    Bundle.load(copy)


def test_a_failure_leaves_the_old_bundle_as_it_was(
    copy: Path, recommender: Generative, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr(recommender, "save", fail)
    with pytest.raises(RuntimeError):
        write(copy, recommender, tmp_path)
    Bundle.load(copy)
