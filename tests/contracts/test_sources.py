"""One behaviour kit over every data source and format: the same tiny domain must come out of each."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from catalex.data.domain import Domain
from catalex.data.prepare import PrepareOptions, input_hashes, prepare
from catalex.data.sources import SOURCES, Source, make_source
from catalex.errors import CatalexError
from support.raw_files import ENDINGS, EVENTS, ITEMS, KEPT_ITEMS, RAW_FORMATS, SEQUENCES

CASES = [(name, ending) for name in SOURCES for ending in ENDINGS[name]]


def test_every_source_is_in_the_kit() -> None:
    assert set(RAW_FORMATS) == set(SOURCES) == set(ENDINGS)


@pytest.fixture(params=CASES, ids=["".join(case) for case in CASES])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, str]]:
    name, ending = request.param
    return name, RAW_FORMATS[name](tmp_path / "raw", ending)


@pytest.fixture
def source(case: tuple[str, dict[str, str]]) -> Source:
    return make_source(case[0], case[1], "domains.tiny.options")


def test_files_exist(source: Source) -> None:
    assert len(source.files()) >= 2
    assert all(path.stat().st_size > 0 for path in source.files())


def test_raw_tables_have_the_promised_columns(source: Source) -> None:
    raw = source.read()
    items, events = raw.items.collect(), raw.interactions.collect()
    assert items["source_id"].dtype == pl.String
    assert items["source_id"].to_list() == [item["id"] for item in ITEMS]
    assert [title or None for title in items["title"]] == [item["title"] for item in ITEMS]
    assert items["categories"].dtype == pl.List(pl.String)
    assert events["user"].dtype in (pl.String, pl.Int64)
    assert events["source_id"].dtype == pl.String
    assert events.height == len(EVENTS)
    assert "timestamp" in events.columns or "position" in events.columns
    for name in ("timestamp", "position"):
        if name in events.columns:
            assert events[name].dtype == pl.Int64


def test_reading_twice_gives_the_same(source: Source) -> None:
    first, second = source.read(), source.read()
    assert first.items.collect().equals(second.items.collect())
    assert first.interactions.collect().equals(second.interactions.collect())


def test_prepared_domain_is_the_same_from_every_source(
    case: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    options = PrepareOptions(source=case[0], options=case[1], min_interactions=2)
    prepare("tiny", options, tmp_path / "out")
    domain = Domain.load(tmp_path / "out")
    ids = domain.items["source_id"].to_pylist()
    assert ids == KEPT_ITEMS
    histories = domain.sequences.all
    assert ["".join(ids[i] for i in histories[u]) for u in range(len(histories))] == list(SEQUENCES.values())
    assert domain.split_id == domain.manifest["split_id"]
    categories = dict(zip(ids, domain.items["categories"].to_pylist(), strict=True))
    assert categories == {item["id"]: item["categories"] for item in ITEMS if item["id"] in KEPT_ITEMS}


def test_input_hashes_name_every_file_and_follow_its_bytes(case: tuple[str, dict[str, str]]) -> None:
    options = PrepareOptions(source=case[0], options=case[1])
    before = input_hashes(options)
    paths = [Path(name) for name in before]
    assert paths == list(make_source(case[0], case[1], "here").files())
    paths[0].write_bytes(paths[0].read_bytes() + b"\n")
    after = input_hashes(options)
    assert [before[str(p)] == after[str(p)] for p in paths] == [False] + [True] * (len(paths) - 1)


def test_a_missing_file_is_named(source: Source) -> None:
    path = source.files()[0]
    path.unlink()
    with pytest.raises(CatalexError, match=rf"{path.stem}.*does not exist"):
        source.files()


def test_an_empty_file_is_named(source: Source) -> None:
    path = source.files()[-1]
    path.write_bytes(b"")
    with pytest.raises(CatalexError, match=rf"{path.name}: the .* file is empty"):
        source.files()


def test_a_file_cut_in_half_gets_a_sentence(case: tuple[str, dict[str, str]], tmp_path: Path) -> None:
    path = make_source(case[0], case[1], "here").files()[0]
    if path.suffix not in (".gz", ".zst", ".parquet"):
        pytest.skip("plain text cut between two lines is still a table")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(
        CatalexError, match=rf"{path.name}: the file is truncated or damaged .*download it again"
    ):
        prepare("tiny", PrepareOptions(source=case[0], options=case[1]), tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_wrong_option_is_refused_with_the_nearest(case: tuple[str, dict[str, str]]) -> None:
    name = next(iter(case[1]))
    with pytest.raises(CatalexError, match=f"unknown key '{name}x'.*Did you mean '{name}'"):
        make_source(case[0], {**case[1], f"{name}x": 1}, "domains.tiny.options")


def test_an_unknown_source_is_refused_with_the_nearest() -> None:
    with pytest.raises(CatalexError, match=r"unknown data source 'movilens'.*Did you mean 'movielens'"):
        make_source("movilens", {}, "domains.tiny.source")
