"""`prepare` as a whole: ids, order, filters, splits, manifest, bytes, messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalex.artifacts import hash_file, read_json
from catalex.data.columns import INTERACTIONS_SCHEMA, ITEMS_SCHEMA
from catalex.data.domain import Domain
from catalex.data.prepare import PrepareOptions, prepare, sort_order
from catalex.errors import CatalexError
from support.raw_files import EVENTS, ITEMS, KEPT_ITEMS, canonical, cells, tables, write

FILES = ("items.parquet", "interactions.parquet", "manifest.json")


def tiny(folder: Path, **options: Any) -> Domain:
    """The tiny domain through source `tables`."""
    raw = tables(folder / "raw", ".parquet")
    prepare("tiny", PrepareOptions(source="tables", options=raw, **options), folder / "out")
    return Domain.load(folder / "out")


def from_events(folder: Path, rows: list[tuple[Any, ...]], **options: Any) -> Domain:
    """A domain of (user, item, timestamp) rows; items come from the interactions."""
    path = write(folder / "events.csv", cells(["user", "item", "timestamp"], rows))
    values = {"min_interactions": 0, **options}
    prepare(
        "made", PrepareOptions(source="tables", options={"interactions": str(path)}, **values), folder / "out"
    )
    return Domain.load(folder / "out")


def spelled(domain: Domain) -> list[str]:
    ids = domain.items["source_id"].to_pylist()
    histories = domain.sequences.all
    return ["".join(ids[item] for item in histories[user]) for user in range(len(histories))]


# --- output -----------------------------------------------------------------------------------------------


def test_schemas_and_manifest(tmp_path: Path) -> None:
    domain = tiny(tmp_path, min_interactions=2)
    manifest = domain.manifest
    events = pl.read_parquet(tmp_path / "out" / "interactions.parquet")
    assert domain.items.schema.equals(ITEMS_SCHEMA)
    assert events.to_arrow().column_names == INTERACTIONS_SCHEMA.names
    assert events["position"].to_list() == [0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 0, 1, 0, 1]
    assert events["split"].to_list() == [0, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 0, 0, 0]
    assert manifest["counts"] == {"users": 5, "items": 4, "interactions": 14}
    assert manifest["mean_length"] == 2.8
    assert manifest["median_length"] == 3.0
    assert manifest["density"] == pytest.approx(0.7)
    assert manifest["sparsity"] == pytest.approx(0.3)
    assert manifest["split"] == {
        "kind": "leave-one-out",
        "interactions": {"train": 8, "valid": 3, "test": 3},
    }
    assert manifest["split_id"] == domain.split_id
    assert manifest["has_timestamp"] is True
    assert manifest["warnings"] == []
    assert manifest["min_interactions"] == {"users": 2, "items": 2}
    assert manifest["coverage"]["title"] == 3
    assert manifest["coverage"]["without_text"] == 1
    assert manifest["files"] == {name: hash_file(tmp_path / "out" / name) for name in FILES[:2]}


def test_a_second_run_gives_the_same_bytes(tmp_path: Path) -> None:
    tiny(tmp_path, min_interactions=2)
    before = [hash_file(tmp_path / "out" / name) for name in FILES]
    tiny(tmp_path, min_interactions=2)
    assert [hash_file(tmp_path / "out" / name) for name in FILES] == before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FILES)


def test_a_failed_run_leaves_no_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny(tmp_path, min_interactions=2)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("catalex.data.prepare._write_interactions", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tiny(tmp_path, min_interactions=0)
    assert not (tmp_path / "out" / "manifest.json").exists()


# --- ids and order ----------------------------------------------------------------------------------------


def test_raw_items_keep_the_order_of_the_items_table(tmp_path: Path) -> None:
    domain = tiny(tmp_path, min_interactions=2)
    assert domain.items["source_id"].to_pylist() == KEPT_ITEMS
    assert domain.items["item_id"].to_pylist() == [0, 1, 2, 3]


def test_without_a_core_the_whole_items_table_stays(tmp_path: Path) -> None:
    domain = tiny(tmp_path, min_interactions=0)
    assert domain.items["source_id"].to_pylist() == [item["id"] for item in ITEMS]
    assert len(domain.sequences.all.items) == len(EVENTS)


def test_canonical_ids_keep_their_order_and_images_follow(tmp_path: Path) -> None:
    raw = canonical(tmp_path / "raw", "")
    prepare("kept", PrepareOptions(source="canonical", options=raw), tmp_path / "all")
    everything = Domain.load(tmp_path / "all")
    assert everything.items["source_id"].to_pylist() == [item["id"] for item in ITEMS]
    assert everything.manifest["min_interactions"] == {"users": 0, "items": 0}
    assert everything.manifest["has_timestamp"] is False
    prepare("core", PrepareOptions(source="canonical", options=raw, min_interactions=2), tmp_path / "core")
    domain = Domain.load(tmp_path / "core")
    assert domain.items["source_id"].to_pylist() == KEPT_ITEMS
    assert domain.items["image"].to_pylist() == [None, None, None, "images.parquet#3"]
    images = pl.read_parquet(tmp_path / "core" / "images.parquet")
    assert images.rows() == [(3, b"bytes of c")]
    assert images.columns == ["item_id", "jpeg"]
    assert domain.manifest["images"] == 1
    assert "images.parquet" in domain.manifest["files"]


def test_prepared_folders_are_canonical(tmp_path: Path) -> None:
    raw = canonical(tmp_path / "raw", "")
    first = prepare("one", PrepareOptions(source="canonical", options=raw), tmp_path / "one")
    again = PrepareOptions(source="canonical", options={"folder": str(tmp_path / "one")})
    second = prepare("one", again, tmp_path / "two")
    assert first["files"] == second["files"]
    assert first["split_id"] == second["split_id"]


def test_fetched_images_stay_while_the_items_are_the_same(tmp_path: Path) -> None:
    tiny(tmp_path, min_interactions=2)
    images = write(tmp_path / "out" / "images.parquet", b"fetched")
    tiny(tmp_path, min_interactions=2, split="global-time", valid_fraction=0.2, test_fraction=0.2)
    assert images.exists()
    tiny(tmp_path, min_interactions=0)
    assert not images.exists()


def test_equal_times_keep_the_order_of_the_file(tmp_path: Path) -> None:
    rows = [("u", item, 100) for item in "zyxzw"] + [("u", "a", 99)]
    assert spelled(from_events(tmp_path, rows)) == ["azyxzw"]


def test_without_times_the_file_has_the_order(tmp_path: Path) -> None:
    path = write(
        tmp_path / "e.csv", cells(["user", "item"], [("v", "b"), ("u", "c"), ("v", "a"), ("v", "c")])
    )
    options = PrepareOptions(source="tables", options={"interactions": str(path)}, min_interactions=0)
    assert prepare("made", options, tmp_path / "out")["has_timestamp"] is False
    assert spelled(Domain.load(tmp_path / "out")) == ["bac", "c"]


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from([0, 5, 2**40, -(2**61), 2**61]), st.integers(-2, 2)),
        min_size=1,
    )
)
def test_sort_order_is_the_stable_one(rows: list[tuple[int, int, int]]) -> None:
    columns = [np.array(column, dtype=np.int64) for column in zip(*rows, strict=True)]
    expected = sorted(range(len(rows)), key=lambda i: rows[i])
    assert sort_order(columns).tolist() == expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("catalex.data.prepare.DEALT_FROM", 0)
        assert sort_order(columns).tolist() == expected


@pytest.mark.parametrize("big", [False, True])
def test_integer_users_of_any_size(tmp_path: Path, big: bool) -> None:
    users = [2**60, 7, 2**60, 7, -5, 7] if big else [3, 7, 3, 7, 5, 7]
    frame = pl.DataFrame({"user": users, "item": list("abcabb"), "timestamp": range(6)})
    frame.write_parquet(tmp_path / "e.parquet")
    options = {"interactions": str(tmp_path / "e.parquet")}
    prepare("made", PrepareOptions(source="tables", options=options, min_interactions=0), tmp_path / "out")
    assert spelled(Domain.load(tmp_path / "out")) == ["ac", "bab", "b"]


# --- filters ----------------------------------------------------------------------------------------------


def test_users_and_items_may_have_minima_of_their_own(tmp_path: Path) -> None:
    domain = tiny(tmp_path, min_interactions=3, min_item_interactions=0)
    assert spelled(domain) == ["abdc", "abd", "dca", "bce"]
    assert len(domain) == len(ITEMS)
    domain = tiny(tmp_path, min_interactions=0, min_item_interactions=4)
    assert spelled(domain) == ["adc", "ad", "dca", "ac", "c", "d"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "abbacb"),
        ({"duplicates": "first"}, "abc"),
        ({"duplicates": "last"}, "acb"),
        ({"repeats": "drop"}, "abacb"),
        ({"max_history": 4}, "bacb"),
        ({"repeats": "drop", "max_history": 3}, "acb"),
    ],
)
def test_duplicates_repeats_and_latest(tmp_path: Path, options: dict[str, Any], expected: str) -> None:
    rows = [("u", item, time) for time, item in enumerate("abbacb")]
    assert spelled(from_events(tmp_path, rows, **options)) == [expected]


def test_the_default_core_of_raw_sources_is_five(tmp_path: Path) -> None:
    raw = tables(tmp_path / "raw", ".parquet")
    message = (
        r"tiny: the k-core filter leaves nothing \(k is 5 for users, 5 for items\) "
        r".found '6 users, 5 items, 16 interactions'.*Lower min_interactions"
    )
    with pytest.raises(CatalexError, match=message):
        prepare("tiny", PrepareOptions(source="tables", options=raw), tmp_path / "out")


# --- splits -----------------------------------------------------------------------------------------------


def test_global_time(tmp_path: Path) -> None:
    rows = [
        ("u", "a", 1),
        ("u", "b", 4),
        ("u", "c", 8),
        ("v", "b", 2),
        ("v", "a", 9),
        ("w", "c", 10),
        ("w", "a", 3),
    ]
    rows += [("v", "c", 5), ("w", "b", 6), ("u", "a", 7)]
    domain = from_events(tmp_path, rows, split="global-time", valid_fraction=0.2, test_fraction=0.3)
    times = pl.read_parquet(tmp_path / "out" / "interactions.parquet")
    expected = dict(zip(range(1, 11), [0] * 5 + [1] * 2 + [2] * 3, strict=True))
    assert dict(times.select("timestamp", "split").rows()) == expected
    assert domain.manifest["split"]["cuts"] == [6, 8]
    assert domain.split_id == domain.manifest["split_id"]
    for user in range(3):
        parts = times.filter(pl.col("user_id") == user)["split"].to_list()
        assert parts == sorted(parts)


def test_global_time_needs_times(tmp_path: Path) -> None:
    raw = canonical(tmp_path / "raw", "")
    with pytest.raises(
        CatalexError, match=r"tiny: a global-time split needs timestamps.*Use split: leave-one-out"
    ):
        prepare(
            "tiny", PrepareOptions(source="canonical", options=raw, split="global-time"), tmp_path / "out"
        )


def test_fractions_must_leave_something(tmp_path: Path) -> None:
    options = PrepareOptions(source="canonical", valid_fraction=0.5, test_fraction=0.5)
    with pytest.raises(CatalexError, match=r"leave nothing to train on"):
        prepare("tiny", options, tmp_path / "out")


def test_too_small_for_a_split(tmp_path: Path) -> None:
    with pytest.raises(CatalexError, match=r"made: the domain is too small for a leave-one-out split"):
        from_events(tmp_path, [("u", "a", 1), ("u", "b", 2), ("v", "a", 3)])


# --- options and warnings ---------------------------------------------------------------------------------


def test_warnings_are_kept(tmp_path: Path) -> None:
    items = write(tmp_path / "items.csv", cells(["id"], [["a"], ["b"], ["c"], ["a"]]))
    events = write(tmp_path / "e.csv", cells(["user", "item", "timestamp"], [("u", i, 5) for i in "abcz"]))
    options = PrepareOptions(
        source="tables",
        options={"interactions": str(events), "items": str(items)},
        min_interactions=0,
        unknown_items="drop",
        duplicate_items="first",
    )
    prepare("made", options, tmp_path / "out")
    warnings = read_json(tmp_path / "out" / "manifest.json")["warnings"]
    assert [warning.split(",")[0] for warning in warnings] == [
        "left out 1 repeated rows of the items table",
        "dropped 1 of 4 interactions name items that the items table lacks",
        "all timestamps lie before 1980; were seconds read as milliseconds?",
    ]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"split": "random"}, "recipe.split: .*'leave-one-out' or 'global-time'"),
        ({"max_history": 2}, "recipe.max_history: .*greater than or equal to 3"),
        ({"min_interaction": 5}, "unknown key 'min_interaction'.*Did you mean 'min_interactions'"),
    ],
)
def test_options_explain_themselves(values: dict[str, Any], message: str) -> None:
    with pytest.raises(CatalexError, match=message):
        PrepareOptions.parse({"source": "tables", **values}, "recipe")


def test_manifest_is_plain_json(tmp_path: Path) -> None:
    tiny(tmp_path, min_interactions=2)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["options"]["source"] == "tables"


def test_sort_order_of_columns_that_are_in_order_and_of_many_equal_rows() -> None:
    times = np.sort(np.random.default_rng(0).integers(0, 50, 3000))
    users = np.random.default_rng(1).integers(0, 7, 3000).astype(np.int32)
    np.testing.assert_array_equal(sort_order([users, times]), np.argsort(users, kind="stable"))
    np.testing.assert_array_equal(sort_order([np.sort(users)]), np.arange(3000))
    np.testing.assert_array_equal(sort_order([times[::-1], users]), np.lexsort((users, times[::-1])))


def test_sort_order_of_many_rows() -> None:
    random = np.random.default_rng(0)
    users = (300_000 * random.beta(1, 2, 200_000)).astype(np.int32)
    times = random.integers(0, 1000, 200_000)
    np.testing.assert_array_equal(sort_order([users, times]), np.lexsort((times, users)))
    one_user = np.full_like(users, 5)
    np.testing.assert_array_equal(sort_order([one_user, times]), np.argsort(times, kind="stable"))
