"""Published identifiers: read as written, checked against the catalogue, made unique without code vectors."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalex.artifacts import write_parquet
from catalex.errors import CatalexError
from catalex.tokenizers.base import CodeSpace
from catalex.tokenizers.conflicts import DIGITS
from catalex.tokenizers.published import (
    METHODS,
    Published,
    PublishedOptions,
    make_unique,
    number_codes,
    read_published,
)

DATA = Path(__file__).resolve().parents[3] / "../shared/data"


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    write_parquet(path, pa.Table.from_pylist(rows))
    return path


def row(item: Any, *codes: Any, **more: str) -> dict[str, Any]:
    return {"item_id": item, "codes": list(codes), **more}


def read(path: Path, items: int | list[str | None] = 3, method: str | None = None) -> Published:
    sources: list[str | None] = [None] * items if isinstance(items, int) else items
    return read_published({"toys": PublishedOptions(file=path, method=method)}, {"toys": sources})


THREE = [row(0, "<a_7>", "<b_0>"), row(1, "<a_7>", "<b_2>"), row(2, "<a_1>", "<b_2>")]


# --- reading ------------------------------------------------------------------------------------------------


def test_the_number_in_a_code_is_the_code(tmp_path: Path) -> None:
    found = read(write(tmp_path / "theirs.parquet", THREE))
    assert found.codes["toys"].tolist() == [[7, 0], [7, 2], [1, 2]]
    assert found.codes["toys"].dtype == np.int32
    assert found.space == CodeSpace((8, 3), (0, 1))
    assert found.methods == {"toys": "theirs"}


@pytest.mark.parametrize("numbers", [[[5, 0], [5, 3]], [["5", "0"], ["5", "3"]]])
def test_integers_and_digits_are_codes(numbers: list[list[Any]], tmp_path: Path) -> None:
    rows = [row(item, *codes) for item, codes in enumerate(numbers)]
    assert read(write(tmp_path / "x.parquet", rows), 2).codes["toys"].tolist() == [[5, 0], [5, 3]]


@pytest.mark.parametrize(
    "texts",
    [
        {"red", "blue", "a1"},
        {"<a_1>", "<b_1>"},  # one number, two codes
        {"1.5", "2.5"},
        {"<a_1>", "<a_70000>"},  # a table of tokens for 70,001 codes, to hold two
        {"", "7"},
    ],
)
def test_other_codes_become_their_rank(texts: set[str]) -> None:
    assert number_codes(texts) == {text: rank for rank, text in enumerate(sorted(texts))}


@given(st.sets(st.text(max_size=6) | st.integers(0, 99).map("<a_{}>".format), min_size=1, max_size=30))
def test_different_codes_stay_different(texts: set[str]) -> None:
    found = number_codes(texts)
    assert found.keys() == texts
    assert len(set(found.values())) == len(texts)
    assert all(0 <= number < 2**16 for number in found.values())


def test_the_order_of_the_rows_does_not_matter(tmp_path: Path) -> None:
    one = read(write(tmp_path / "a.parquet", THREE))
    other = read(write(tmp_path / "b.parquet", THREE[::-1]))
    assert np.array_equal(one.codes["toys"], other.codes["toys"])
    assert one.version("toys", "digit") == other.version("toys", "digit") != one.version("toys", "none")


def test_items_may_be_named_by_source_ids(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", [row("B2", 5), row("B0", 3), row("B1", 4)])
    assert read(path, ["B0", "B1", "B2"]).codes["toys"].tolist() == [[3], [4], [5]]
    for sources in (["B0", "B1", None], ["B0", "B1", "B1"]):
        with pytest.raises(CatalexError, match="source ids, but in this catalogue they are missing or not"):
            read(path, sources)


def test_a_method_is_chosen(tmp_path: Path) -> None:
    rows = [row(0, 1, method="ours"), row(0, 2, method="theirs"), row(1, 5, method="ours")]
    path = write(tmp_path / "x.parquet", rows)
    found = read(path, 2, "ours")
    assert found.codes["toys"].tolist() == [[1], [5]]
    assert found.methods == {"toys": "ours"}
    with pytest.raises(CatalexError, match=r"no identifiers of method 'hers' \(allowed: ours, theirs\)"):
        read(path, 2, "hers")
    with pytest.raises(CatalexError, match=r"of several methods \(allowed: ours, theirs\)\. Choose one"):
        read(path, 2)
    only = write(tmp_path / "y.parquet", rows[:1])
    assert read(only, 1).methods == {"toys": "ours"}
    with pytest.raises(CatalexError, match=r"no column 'method'.*Leave out 'method'"):
        read(write(tmp_path / "z.parquet", THREE), 3, "ours")


def test_a_code_means_the_same_in_all_domains(tmp_path: Path) -> None:
    files = {
        "toys": write(tmp_path / "toys.parquet", [row(0, "red", "<b_4>"), row(1, "blue", "<b_0>")]),
        "games": write(tmp_path / "games.parquet", [row(0, "green", "<b_9>"), row(1, "red", "<b_0>")]),
    }
    options = {name: PublishedOptions(file=path) for name, path in files.items()}
    found = read_published(options, {"toys": [None] * 2, "games": [None] * 2})
    assert found.codes["toys"].tolist() == [[2, 4], [0, 0]]
    assert found.codes["games"].tolist() == [[1, 9], [2, 0]]
    assert found.space.sizes == (3, 10)
    write(files["games"], [row(0, "red"), row(1, "blue")])
    with pytest.raises(CatalexError, match=r"of 'games' and 'toys' differ in the number of codes \(found 1"):
        read_published(options, {"toys": [None] * 2, "games": [None] * 2})


# --- bad files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([{"item_id": 0}], r"x\.parquet: column 'codes' is missing"),
        ([{"item": 0, "codes": [1]}], r"x\.parquet: column 'item_id' is missing.*allowed: item, codes"),
        (THREE[:2], r"item 2 has no row \(found '2 of 3 items'\)"),
        ([*THREE, row(1, "<a_0>", "<b_0>")], "item 1 has more than one row"),
        ([*THREE, row(3, "<a_0>", "<b_0>")], r"no item with this item id \(found 3; allowed: 0 to 2\)"),
        ([*THREE[:2], row(-1, "<a_0>", "<b_0>")], "no item with this item id .found -1"),
        ([*THREE[:2], row(2, "<a_0>")], r"item 2 has another number of codes.*\(found 1; allowed: 2\)"),
        ([*THREE[:2], row(2, "<a_0>", None)], r"item 2 has no full identifier"),
        ([*THREE[:2], row(2)], r"item 2 has no full identifier"),
        ([*THREE[:2], {"item_id": 2, "codes": None}], r"item 2 has no full identifier"),
        ([row(0, 1), row(1, -1), row(2, 3)], r"item 1 has no full identifier \(found \[-1\]"),
        ([row(0, 1.5), row(1, 2.5), row(2, 3.5)], r"item 0 has no full identifier"),
        ([{"item_id": 0, "codes": 1}], r"item 0 has no full identifier"),
        ([row(0, 1), row(None, 1)], "'item_id' holds something else than integers or strings"),
        ([row(0.5, 1)], r"'item_id' holds something else than integers or strings \(found 0\.5"),
        ([row("B9", 1)], r"no item with this source id \(found 'B9'; allowed: the 3 source ids"),
        ([row("B0", 1)], r"item 'B1' has no row"),
    ],
)
def test_a_bad_file_gets_a_sentence(rows: list[dict[str, Any]], sentence: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", rows)
    with pytest.raises(CatalexError, match=sentence) as caught:
        read(path, ["B0", "B1", "B2"])
    assert "x.parquet" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_empty_or_no_parquet_gets_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    with pytest.raises(CatalexError, match="does not exist"):
        read(path)
    path.write_text("codes")
    with pytest.raises(CatalexError, match="not a readable Parquet file"):
        read(path)
    write_parquet(path, pa.Table.from_pylist(THREE).slice(0, 0))
    with pytest.raises(CatalexError, match="there are no rows"):
        read(path)


# --- unique identifiers -------------------------------------------------------------------------------------


def published(*domains: list[list[int]]) -> Published:
    codes = {f"d{number}": np.array(rows, np.int32) for number, rows in enumerate(domains)}
    sizes = tuple(int(level.max()) + 1 for level in np.concatenate(list(codes.values())).T)
    return Published(codes, CodeSpace(sizes, tuple(range(len(sizes)))), dict.fromkeys(codes, "m"))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40))
def test_a_digit_numbers_the_items_of_each_group_by_item_id(rows: list[tuple[int, int]]) -> None:
    unique, space = make_unique(published([list(r) for r in rows]), "digit")
    seen: Counter[tuple[int, int]] = Counter()
    expected = []
    for r in rows:
        expected.append([*r, seen[r]])
        seen[r] += 1
    assert unique["d0"].tolist() == expected
    assert space.sizes[-1] == DIGITS
    assert space.groups == (0, 1, 2)


def test_the_digits_are_as_many_as_the_largest_group_of_any_domain_needs() -> None:
    given_ = published([[0, 1]] * 3, [[1, 0]] * (DIGITS + 44))
    unique, space = make_unique(given_, "digit")
    assert space.sizes == (2, 2, DIGITS + 44)
    assert [len(np.unique(rows, axis=0)) for rows in unique.values()] == [3, DIGITS + 44]
    assert given_.codes["d0"].shape == (3, 2)


def test_none_takes_unique_identifiers_as_they_are_and_refuses_others() -> None:
    unique, space = make_unique(published([[0, 1], [1, 1]], [[0, 1]]), "none")
    assert unique["d0"].tolist() == [[0, 1], [1, 1]]
    assert space == CodeSpace((2, 2), (0, 1))
    with pytest.raises(CatalexError, match=r"d1: 3 items have 2 distinct identifiers.*conflicts: digit"):
        make_unique(published([[0, 1]], [[0, 1], [1, 1], [0, 1]]), "none")


def test_there_is_no_nearest_identifier_without_code_vectors() -> None:
    assert "reassign" not in METHODS
    with pytest.raises(CatalexError, match=r"unknown conflict method.*'reassign'.*digit, none"):
        make_unique(published([[0, 1]]), "reassign")


# --- the development data -----------------------------------------------------------------------------------


@pytest.mark.skipif(
    not (DATA / "beauty/reference_codes.parquet").is_file(), reason="needs the development data"
)
@pytest.mark.parametrize(
    ("domain", "method", "items", "distinct", "levels"),
    [
        ("beauty", "unitok_moe10_shared_2000", 12_101, 4_212, 5),
        ("beauty", "letter", 12_101, 12_088, 4),
        ("office", "unitok_moe10_2000", 2_420, 1_006, 5),
        ("yelp", "unitok_moe10_shared_2000", 20_033, 5_354, 5),
        ("yelp", "letter", 20_033, 19_201, 4),
    ],
)
def test_released_identifiers_are_read_whole(
    domain: str, method: str, items: int, distinct: int, levels: int
) -> None:
    options = PublishedOptions(file=DATA / domain / "reference_codes.parquet", method=method)
    found = read_published({domain: options}, {domain: [None] * items})
    assert found.codes[domain].shape == (items, levels)
    assert len(np.unique(found.codes[domain], axis=0)) == distinct
    assert max(found.space.sizes) == 256
    unique, space = make_unique(found, "digit")
    assert len(np.unique(unique[domain], axis=0)) == items
    assert space.sizes == (*found.space.sizes, DIGITS)
