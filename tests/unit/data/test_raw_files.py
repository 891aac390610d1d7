"""What the sources make of unusual and of wrong files: every message names place, value and remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from catalex.data.sources import RawDomain, make_source
from catalex.data.sources.amazon2023 import image_url
from catalex.data.sources.catalogue import plain
from catalex.data.sources.collecting import Collected, collect_source
from catalex.data.sources.conditions import keep_rows
from catalex.errors import CatalexError
from support.raw_files import cells, lines_of, write

HEADER = ["user", "item", "timestamp"]
ROWS = [["u", "a", 1_300_000_000], ["u", "b", 1_300_000_001], ["v", "a", 1_300_000_002]]


def collected(source: str, unknown: Any = "refuse", duplicates: Any = "refuse", **options: Any) -> Collected:
    return collect_source(make_source(source, options, "recipe"), unknown, duplicates)


def events_file(
    folder: Path, rows: list[list[Any]], header: list[str] = HEADER, name: str = "events.csv"
) -> str:
    return str(write(folder / name, cells(header, rows)))


def times_of(found: Collected) -> list[int]:
    return found.events["timestamp"].to_list()


# --- times ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("time_format", "value", "expected"),
    [
        ("seconds", "1300000000", 1_300_000_000),
        ("seconds", "1300000000.0", 1_300_000_000),
        ("seconds", "1.3e9", 1_300_000_000),
        ("milliseconds", "1300000000999", 1_300_000_000),
        ("iso", "2011-03-13", 1_299_974_400),
        ("iso", "2011-03-13 07:06", 1_300_000_000 - 40),
        ("iso", "2011-03-13 07:06:40", 1_300_000_000),
        ("iso", "2011-03-13T07:06:40.25Z", 1_300_000_000),
        ("iso", "2011-03-13T09:06:40+02:00", 1_300_000_000),
        ("%d/%m/%Y %H:%M", "13/03/2011 07:06", 1_300_000_000 - 40),
        ("%d/%m/%Y", "13/03/2011", 1_299_974_400),
        ("%m/%d/%Y %H:%M", "3/13/2011 7:06", 1_300_000_000 - 40),
        ("%Y-%m-%d %H:%M:%S %z", "2011-03-13 09:06:40 +0200", 1_300_000_000),
    ],
)
def test_times(tmp_path: Path, time_format: str, value: str, expected: int) -> None:
    path = events_file(tmp_path, [["u", "a", value]])
    assert times_of(collected("tables", interactions=path, time_format=time_format)) == [expected]


def test_parquet_dates_need_no_format(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user": [3], "item": [9], "timestamp": ["2011-03-13 07:06:40"]})
    frame.with_columns(pl.col("timestamp").str.to_datetime()).write_parquet(tmp_path / "e.parquet")
    found = collected("tables", interactions=str(tmp_path / "e.parquet"))
    assert times_of(found) == [1_300_000_000]
    assert found.items["source_id"].to_list() == ["9"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "soon",
            "row 2: the timestamp cannot be read .found 'soon'; allowed: seconds, milliseconds, iso",
        ),
        ("", "events.csv, row 2: the timestamp cannot be read .*Set time_format"),
        ("nan", "events.csv, row 2: the timestamp cannot be read .found 'nan'"),
        (
            "-5",
            "row 2: the timestamp lies outside the years 1970 to 2100 .found '-5'.*Correct the row",
        ),
        (
            "1300000000000",
            "row 2: the timestamp lies outside .* looks like milliseconds: set time_format: milliseconds",
        ),
        ("13000000000000000", "row 2: the timestamp lies outside .*Correct the row"),
    ],
)
def test_wrong_times(tmp_path: Path, value: str, message: str) -> None:
    path = events_file(tmp_path, [ROWS[0], ["u", "b", value], ["u", "c", "worse"]])
    with pytest.raises(CatalexError, match=message):
        collected("tables", interactions=path)


def test_wrong_time_format_is_refused_when_the_recipe_is_read(tmp_path: Path) -> None:
    with pytest.raises(
        CatalexError, match=r"recipe.time_format: .*must be seconds, milliseconds, iso.*'minutes'"
    ):
        make_source("tables", {"interactions": "x.csv", "time_format": "minutes"}, "recipe")


# --- columns and rows -------------------------------------------------------------------------------------


def test_a_missing_column_names_the_nearest(tmp_path: Path) -> None:
    path = events_file(tmp_path, ROWS, ["userid", "item", "timestamp"])
    with pytest.raises(
        CatalexError, match=r"column 'user' is missing .*userid, item, timestamp.*Did you mean 'userid'"
    ):
        collected("tables", interactions=path)


@pytest.mark.parametrize("row", [["", "b", 5], ["u", "", 5]])
def test_a_missing_user_or_item_names_the_row(tmp_path: Path, row: list[Any]) -> None:
    noun = "item" if row[0] else "user"
    path = events_file(tmp_path, [*ROWS, row])
    with pytest.raises(
        CatalexError, match=rf"events.csv, row 4: the {noun} of an interaction is missing.*present"
    ):
        collected("tables", interactions=path)


def test_a_rating_that_is_no_number(tmp_path: Path) -> None:
    path = events_file(tmp_path, [["u", "a", 5, 3.0], ["u", "b", 6, "good"]], [*HEADER, "rating"])
    with pytest.raises(CatalexError, match=r"row 2: the rating is not a number .found 'good'"):
        collected("tables", interactions=path, minimum_rating=1)
    assert collected("tables", interactions=path).events.height == 2


def test_minimum_rating(tmp_path: Path) -> None:
    path = events_file(tmp_path, [["u", "a", 5, 3.0], ["u", "b", 6, 4]], [*HEADER, "rating"])
    assert collected("tables", interactions=path, minimum_rating=4).events["timestamp"].to_list() == [6]
    bare = events_file(tmp_path, ROWS, name="bare.csv")
    with pytest.raises(CatalexError, match=r"minimum_rating needs a rating column"):
        collected("tables", interactions=bare, minimum_rating=4)


def test_no_rows(tmp_path: Path) -> None:
    items = str(write(tmp_path / "items.csv", cells(["id"], [["a"]])))
    with pytest.raises(CatalexError, match=r"there are no interactions"):
        collected("tables", interactions=events_file(tmp_path, []), items=items)


def test_unknown_items(tmp_path: Path) -> None:
    path = events_file(tmp_path, [*ROWS, ["v", "q7", 9]])
    items = str(write(tmp_path / "items.csv", cells(["id", "title"], [["a", "A"], ["b", "B"]])))
    message = (
        r"1 of 4 interactions name items that the items table lacks, first 'q7'.*set unknown_items: drop"
    )
    with pytest.raises(CatalexError, match=message):
        collected("tables", interactions=path, items=items)
    found = collected("tables", "drop", interactions=path, items=items)
    assert found.events.height == 3
    assert found.warnings == ["dropped 1 of 4 interactions name items that the items table lacks, first 'q7'"]
    stranger = str(write(tmp_path / "other.csv", cells(["id"], [["z"]])))
    with pytest.raises(
        CatalexError, match=r"no interaction names an item of the items table; the first names 'a'"
    ):
        collected("tables", "drop", interactions=path, items=stranger)


def test_duplicate_items(tmp_path: Path) -> None:
    path = events_file(tmp_path, ROWS)
    items = str(write(tmp_path / "items.csv", cells(["id", "title"], [["a", "1"], ["b", "2"], ["a", "3"]])))
    message = r"items.csv, row 3: the item id appears twice .found 'a'.*set duplicate_items: first"
    with pytest.raises(CatalexError, match=message):
        collected("tables", interactions=path, items=items)
    found = collected("tables", "refuse", "first", interactions=path, items=items)
    assert found.items["title"].to_list() == ["1", "2"]
    assert "1 repeated rows" in found.warnings[0]


def test_an_item_without_id(tmp_path: Path) -> None:
    items = str(write(tmp_path / "items.csv", cells(["id", "title"], [["a", "1"], ["", "2"]])))
    with pytest.raises(CatalexError, match=r"items.csv, row 2: the item has no id"):
        collected("tables", interactions=events_file(tmp_path, ROWS), items=items)


# --- damaged files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
@pytest.mark.parametrize("at", [3, 1500])
def test_a_malformed_json_line_has_its_number(tmp_path: Path, ending: str, at: int) -> None:
    lines = lines_of([dict(zip(HEADER, ROWS[0], strict=True))] * 2000).splitlines(keepends=True)
    lines[at - 1] = '{"user": oops}\n'
    path = write(tmp_path / f"events{ending}", "".join(lines))
    with pytest.raises(
        CatalexError, match=rf"events{ending}, line {at}: not valid JSON: Expecting value .found '.*oops"
    ):
        collected("tables", interactions=str(path))


def test_a_json_line_that_is_no_object(tmp_path: Path) -> None:
    path = write(tmp_path / "events.jsonl", "[1, 2]\n")
    with pytest.raises(CatalexError, match=r"line 1: a line must be a JSON object .found '\[1, 2\]'"):
        collected("tables", interactions=str(path))


def test_a_row_with_too_many_cells(tmp_path: Path) -> None:
    path = write(tmp_path / "events.csv", "user,item,timestamp\nu,a,5\nu,b,6,7\n")
    with pytest.raises(CatalexError, match=r"events.csv, row 2: a row has 4 cells under a header of 3"):
        collected("tables", interactions=str(path))


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    path = str(write(tmp_path / "events.csv", "user,item,timestamp\nu,é,5\n".encode("latin-1")))
    with pytest.raises(CatalexError, match=r"the file is not UTF-8 .*utf8-lossy"):
        collected("tables", interactions=path)
    assert collected("tables", interactions=path, encoding="utf8-lossy").events.height == 1


@pytest.mark.parametrize("name", ["events.xlsx", "events", "events.csv.zip"])
def test_an_unknown_format(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, "user,item\nu,a\n")
    with pytest.raises(
        CatalexError, match=r"format of the file cannot be told .*\.parquet, \.csv, \.tsv, \.jsonl"
    ):
        collected("tables", interactions=str(path))


def test_a_folder_and_a_typing_error(tmp_path: Path) -> None:
    path = events_file(tmp_path, ROWS)
    with pytest.raises(CatalexError, match=r"must be a file, not a folder"):
        collected("tables", interactions=str(tmp_path))
    with pytest.raises(
        CatalexError, match=r"evnts.csv: the interactions file does not exist. Did you mean 'events.csv'"
    ):
        collected("tables", interactions=path.replace("events", "evnts"))
    with pytest.raises(CatalexError, match=r"no file matches"):
        collected("tables", interactions=path.replace("events", "part-*"))


def test_a_bad_line_of_python_literals(tmp_path: Path) -> None:
    reviews = write(tmp_path / "r.json", lines_of([{"reviewerID": "u", "asin": "a", "unixReviewTime": 5}]))
    for line, problem in (
        ("__import__('os')", "neither JSON nor a Python literal"),
        ("[1]", "must be a dict"),
    ):
        meta = write(tmp_path / "m.json.gz", "{'asin': 'a', 'title': 'It\\'s'}\n" + line + "\n")
        with pytest.raises(CatalexError, match=rf"m.json.gz, line 2: .*{problem}"):
            collected("amazon2014", reviews=str(reviews), metadata=str(meta))
    meta = write(tmp_path / "m.json", "{'title': 'x'}\n")
    with pytest.raises(CatalexError, match=r"m.json, line 1: the line has no 'asin'"):
        collected("amazon2014", reviews=str(reviews), metadata=str(meta))


def test_a_short_line_of_movies(tmp_path: Path) -> None:
    write(tmp_path / "ratings.dat", "1::2::5::978300760\n")
    write(tmp_path / "movies.dat", "1::Toy Story (1995)::Comedy\n2::Broken\n")
    with pytest.raises(CatalexError, match=r"movies.dat, line 2: a line must have 3 fields .*2::Broken"):
        collected("movielens", folder=str(tmp_path))


@pytest.mark.parametrize(
    ("ids", "message"),
    [([0, 2], "must run from 0 to N-1 without gaps .found '0 to 2 in 2 rows'"), ([0, 0], "appears twice")],
)
def test_canonical_ids_have_no_gaps(tmp_path: Path, ids: list[int], message: str) -> None:
    pl.DataFrame({"item_id": ids}).write_parquet(tmp_path / "items.parquet")
    pl.DataFrame({"user_id": [0], "item_id": [0]}).write_parquet(tmp_path / "interactions.parquet")
    with pytest.raises(CatalexError, match=message):
        collected("canonical", folder=str(tmp_path))


def test_canonical_ids_are_integers(tmp_path: Path) -> None:
    pl.DataFrame({"item_id": ["a"]}).write_parquet(tmp_path / "items.parquet")
    pl.DataFrame({"user_id": [0], "item_id": ["a"]}).write_parquet(tmp_path / "interactions.parquet")
    with pytest.raises(CatalexError, match=r"column 'item_id' must hold integers .*use source 'tables'"):
        collected("canonical", folder=str(tmp_path))


# --- content ----------------------------------------------------------------------------------------------


def test_unicode_and_huge_titles_stay_whole(tmp_path: Path) -> None:
    huge = "長い title 🧴 " * 70_000
    titles = {"a": huge.strip(), "b": "naïve ☕"}
    items = str(
        write(tmp_path / "items.csv", cells(["id", "title"], [list(pair) for pair in titles.items()]))
    )
    found = collected("tables", interactions=events_file(tmp_path, ROWS), items=items)
    assert found.items["title"].to_list() == list(titles.values())
    assert len(huge.encode()) > 1_000_000


def test_items_from_the_interactions_with_filters(tmp_path: Path) -> None:
    """The shape of UCI Online Retail: one table, cancellations, unknown customers, repeated descriptions."""
    header = [
        "Invoice",
        "StockCode",
        "Description",
        "Quantity",
        "InvoiceDate",
        "Price",
        "Customer ID",
        "Country",
    ]
    rows = [
        ["489434", "85048", "", 12, "2009-12-01 07:45:00", 6.95, "13085", "UK"],
        ["489435", "22350", " CAT BOWL ", 12, "2009-12-01 07:46:00", 2.55, "13085", "UK"],
        ["C489436", "22350", "CAT BOWL", -12, "2009-12-01 07:47:00", 2.55, "13085", "UK"],
        ["489437", "POST", "POSTAGE", 1, "2009-12-01 07:48:00", 2.55, "13085", "UK"],
        ["489438", "85048", "GLASS BALL", 3, "2009-12-01 07:49:00", 6.95, "13086", "France"],
        ["489439", "85048", "OTHER BALL", 3, "2009-12-01 07:49:00", 6.95, "", "UK"],
    ]
    found = collected(
        "tables",
        interactions=events_file(tmp_path, rows, header),
        columns={"user": "Customer ID", "item": "StockCode", "timestamp": "InvoiceDate"},
        item_columns={"title": "Description", "extra": ["Country"]},
        time_format="iso",
        keep={
            "Quantity": ">0",
            "Invoice": "lacks ^C",
            "Customer ID": "present",
            "StockCode": r"matches ^\d{5}",
        },
    )
    assert found.items["source_id"].to_list() == ["85048", "22350"]
    assert found.items["title"].to_list() == ["GLASS BALL", "CAT BOWL"]
    assert json.loads(found.items["extra"][0]) == {"Country": "UK"}
    assert found.events["user"].to_list() == [0, 0, 1]
    assert found.events["item_id"].to_list() == [0, 1, 0]


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        (">2", [3]),
        (">=2", [2, 3]),
        ("<2", [1]),
        ("<= 2", [1, 2]),
        ("=2", [2]),
        ("!=2", [1, 3]),
        ("=2.0", [2]),
        ("present", [1, 2, 3]),
        ("matches [12]", [1, 2]),
        ("lacks [12]", [3]),
        ([">1", "<3"], [2]),
    ],
)
def test_conditions(condition: Any, kept: list[int]) -> None:
    frame = pl.LazyFrame({"x": ["1", "2", "3", None]})
    assert keep_rows(frame, {"x": condition}, "recipe").collect()["x"].cast(pl.Int64).to_list() == kept


@pytest.mark.parametrize("condition", [">many", "2", "", "matches (", "import os"])
def test_conditions_that_are_not_understood(condition: str) -> None:
    with pytest.raises(
        CatalexError, match=r"recipe.keep.x: the (condition is not understood|regular expression)"
    ):
        keep_rows(pl.LazyFrame({"x": ["1"]}), {"x": condition}, "recipe")


def test_tables_in_several_files(tmp_path: Path) -> None:
    events_file(tmp_path, ROWS[:2], name="part-0.csv")
    events_file(tmp_path, [*ROWS[2:], ["w", "a", "late"]], name="part-1.csv")
    source = make_source("tables", {"interactions": str(tmp_path / "part-*.csv")}, "recipe")
    assert [path.name for path in source.files()] == ["part-0.csv", "part-1.csv"]
    with pytest.raises(CatalexError, match=r"part-1.csv, row 2: .*'late'"):
        collect_source(source, "refuse", "refuse")


def test_images_and_further_fields_of_tables(tmp_path: Path) -> None:
    rows = [["a", "one.jpg", "red", 3], ["b", "https://x.org/two.jpg", "", 4], ["c", "", "", ""]]
    items = str(write(tmp_path / "items.csv", cells(["id", "image", "colour", "size"], rows)))
    found = collected(
        "tables",
        interactions=events_file(tmp_path, ROWS),
        items=items,
        image_folder="pictures",
        item_columns={"extra": ["colour", "size"]},
    )
    assert found.items["image"].to_list() == ["pictures/one.jpg", "https://x.org/two.jpg", None]
    assert found.items["extra"].to_list() == ['{"colour": "red", "size": "3"}', '{"size": "4"}', None]


def test_a_column_that_is_named_must_be_there(tmp_path: Path) -> None:
    path = events_file(tmp_path, ROWS)
    with pytest.raises(CatalexError, match=r"column 'titel' is missing"):
        collected("tables", interactions=path, item_columns={"title": "titel"})
    found = collected("tables", interactions=path, columns={"timestamp": None})
    assert "timestamp" not in found.events.columns


def test_amazon_2023_content(tmp_path: Path) -> None:
    reviews = [{"user_id": "u", "parent_asin": "a", "timestamp": 1_300_000_000_000, "rating": 5.0}]
    meta = {
        "parent_asin": "a",
        "title": "Tom &amp; <b>Jerry</b>",
        "store": "S",
        "categories": [],
        "main_category": "Toys",
        "description": ["One.", "Two."],
        "features": ["Soft"],
        "average_rating": 4.9,
        "images": [{"thumb": "t", "large": None, "hi_res": "h"}, {"thumb": "u", "large": "l"}],
        "details": {"Size": 3},
    }
    found = collected(
        "amazon2023",
        reviews=str(write(tmp_path / "r.jsonl", lines_of(reviews))),
        metadata=str(write(tmp_path / "m.jsonl", lines_of([meta]))),
    )
    item = found.items.row(0, named=True)
    assert item["title"] == "Tom & Jerry"
    assert item["brand"] == "S"
    assert item["categories"] == ["Toys"]
    assert item["description"] == "One. Two. Soft"
    assert item["image"] == "l"
    assert "4.9" not in str(item)
    assert times_of(found) == [1_300_000_000]


def test_amazon_2023_ratings_alone(tmp_path: Path) -> None:
    header = ["user_id", "parent_asin", "rating", "timestamp"]
    path = events_file(tmp_path, [["u", "b", 5, 1_300_000_000_000], ["u", "a", 1, 1_300_000_001_000]], header)
    assert collected("amazon2023", reviews=path).items["source_id"].to_list() == ["b", "a"]


@pytest.mark.parametrize(
    ("cell", "url"),
    [
        (None, None),
        ("[]", None),
        ('[{"thumb": "t", "hi_res": "h"}]', "h"),
        ('[{"thumb": "t"}, {"thumb": "u"}]', "u"),
        ('{"large": [null, "l"], "thumb": ["t", "u"]}', "l"),
    ],
)
def test_image_url(cell: str | None, url: str | None) -> None:
    assert image_url(cell) == url


def test_plain_leaves_comparisons_alone() -> None:
    assert plain("a < b &lt; c <br/>d") == "a < b < c d"


def test_recbole_field_names(tmp_path: Path) -> None:
    write(tmp_path / "x.inter", "uid:token\titem_id:token\nu\ta\n")
    write(tmp_path / "x.item", 'item_id:token\tmovie_title:token_seq\tclass:token_seq\na\tA "b\tX Y\n')
    files = {"interactions": str(tmp_path / "x.inter"), "items": str(tmp_path / "x.item")}
    found = collected("recbole", **files, user="uid", timestamp=None)
    assert found.items.select("title", "categories").row(0) == ('A "b', ["X", "Y"])
    with pytest.raises(CatalexError, match=r"column 'user_id' is missing .*uid, item_id"):
        collected("recbole", **files, timestamp=None)


def test_the_frames_are_lazy(tmp_path: Path) -> None:
    raw = make_source("tables", {"interactions": events_file(tmp_path, ROWS)}, "recipe").read()
    assert isinstance(raw, RawDomain)
    assert isinstance(raw.items, pl.LazyFrame)
    assert isinstance(raw.interactions, pl.LazyFrame)
