"""The table of public datasets: complete, readable by the sources it names, and unpacked without trust."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import polars as pl
import pytest
import yaml

from catalex.data import datasets as module
from catalex.data.datasets import (
    DATASETS,
    Dataset,
    describe,
    download_dataset,
    find,
    list_datasets,
    recipe_snippet,
)
from catalex.data.prepare import PrepareOptions
from catalex.data.sources import SOURCES, make_source
from catalex.errors import CatalexError
from support.raw_files import zipped
from support.server import Server

# --- the table ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", list_datasets(), ids=lambda dataset: dataset.name)
def test_every_entry_is_complete(dataset: Dataset) -> None:
    assert DATASETS[dataset.name] is dataset
    assert dataset.terms
    assert dataset.citation
    assert dataset.homepage.startswith("https://")
    assert dataset.files
    assert len(set(dataset.categories)) == len(dataset.categories)
    for file in dataset.files:
        assert file.url.startswith("https://")
        assert ("{category}" in file.url) == ("{category}" in file.name) == bool(dataset.categories)
        assert file.sha256 is None or len(bytes.fromhex(file.sha256)) == 32
        assert file.size_limit > 0


@pytest.mark.parametrize("dataset", list_datasets(), ids=lambda dataset: dataset.name)
def test_every_recipe_snippet_is_a_valid_domain_of_a_recipe(dataset: Dataset) -> None:
    category = dataset.categories[0] if dataset.categories else None
    text = recipe_snippet(dataset, Path("raw"), category)
    assert "{" not in text
    ((name, block),) = yaml.safe_load(text)["domains"].items()
    options = PrepareOptions.parse(block, f"domains.{name}")
    assert options.source in SOURCES
    make_source(options.source, options.options, f"domains.{name}.options")


def test_every_file_a_recipe_reads_is_one_that_is_fetched() -> None:
    for dataset in list_datasets():
        if dataset.source == "tables":
            read = {dataset.options["interactions"]}
        else:
            read = set(dataset.options.values())
        names = {"{folder}/" + file.name for file in dataset.files}
        if dataset.name == "online-retail-2":
            continue  # a workbook that a person saves as CSV
        assert read == (
            {name.removesuffix(".zip") for name in names} if dataset.files[0].is_archive else names
        )


def test_the_number_of_categories_is_the_published_one() -> None:
    counts = {dataset.name: len(dataset.categories) for dataset in list_datasets() if dataset.categories}
    # 33 categories and "Unknown" (2023), 29 (2018), 24 (2014)
    assert counts == {"amazon-2023": 34, "amazon-2023-5core": 34, "amazon-2018": 29, "amazon-2014": 24}


def test_describe_tells_terms_citation_and_recipe() -> None:
    text = describe("amazon-2014")
    for words in ("terms:", "cite:", "SIGIR 2015", "Toys_and_Games", "source: amazon2014", "recipe:"):
        assert words in text


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(CatalexError, match="Did you mean 'movielens-1m'"):
        find("movielens1m")


# --- fetching -----------------------------------------------------------------------------------------------


@pytest.fixture
def mirrored(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The table with every address on the local server and without the checksums of the real files."""

    def moved(dataset: Dataset) -> Dataset:
        files = [
            replace(f, url=server.url + "/" + f.url.rpartition("/")[2], sha256=None) for f in dataset.files
        ]
        return replace(dataset, files=tuple(files))

    monkeypatch.setattr(module, "DATASETS", MappingProxyType({n: moved(d) for n, d in DATASETS.items()}))
    return server


def test_movielens_from_download_to_source(mirrored: Server, tmp_path: Path) -> None:
    ratings = b"1::10::5::978300760\n1::20::3::978302109\n2::10::4::978301968\n"
    movies = "10::Amélie (2001)::Comedy|Romance\n20::Heat (1995)::Action\n".encode("latin-1")
    members = {"ml-1m/": b"", "ml-1m/ratings.dat": ratings, "ml-1m/movies.dat": movies}
    mirrored.add("/ml-1m.zip", zipped(members))
    found = download_dataset("movielens-1m", tmp_path)
    assert found == [tmp_path / "ml-1m/ratings.dat", tmp_path / "ml-1m/movies.dat"]
    block = yaml.safe_load(recipe_snippet(find("movielens-1m"), tmp_path))["domains"]["movielens_1m"]
    raw = make_source(block["source"], block["options"], "domains.movielens_1m").read()
    assert raw.interactions.collect().height == 3
    assert "Amélie" in raw.items.collect()["title"].to_list()[0]
    assert download_dataset("movielens-1m", tmp_path) == found
    assert len(mirrored.requests) == 1


@pytest.mark.parametrize(
    ("name", "reviews", "metadata", "lines"),
    [
        (
            "amazon-2014",
            "reviews_Beauty_5.json.gz",
            "meta_Beauty.json.gz",
            (
                '{"reviewerID": "U", "asin": "A", "overall": 5.0, "unixReviewTime": 1400000000}',
                "{'asin': 'A', 'title': 'Soap', 'categories': [['Beauty']]}",
            ),
        ),
        (
            "amazon-2018",
            "All_Beauty_5.json.gz",
            "meta_All_Beauty.json.gz",
            (
                '{"reviewerID": "U", "asin": "A", "overall": 5.0, "unixReviewTime": 1400000000}',
                '{"asin": "A", "title": "Soap", "category": ["Beauty"]}',
            ),
        ),
        (
            "amazon-2023",
            "All_Beauty.jsonl.gz",
            "meta_All_Beauty.jsonl.gz",
            (
                '{"user_id": "U", "parent_asin": "A", "rating": 5.0, "timestamp": 1400000000000}',
                '{"parent_asin": "A", "title": "Soap"}',
            ),
        ),
        (
            "amazon-2023-5core",
            "All_Beauty.csv.gz",
            "meta_All_Beauty.jsonl.gz",
            (
                "user_id,parent_asin,rating,timestamp\nU,A,5.0,1400000000000",
                '{"parent_asin": "A", "title": "Soap"}',
            ),
        ),
    ],
)
def test_amazon_from_download_to_source(
    mirrored: Server, tmp_path: Path, name: str, reviews: str, metadata: str, lines: tuple[str, str]
) -> None:
    category = "Beauty" if name == "amazon-2014" else "All_Beauty"
    for path, line in zip((reviews, metadata), lines, strict=True):
        mirrored.add("/" + path, gzip.compress(line.encode() + b"\n", mtime=0))
    found = download_dataset(name, tmp_path, category=category)
    assert [path.name for path in found] == [reviews, metadata]
    ((_, block),) = yaml.safe_load(recipe_snippet(find(name), tmp_path, category))["domains"].items()
    raw = make_source(block["source"], block["options"], "domains.x").read()
    assert raw.items.collect()["title"].to_list() == ["Soap"]
    assert raw.interactions.collect()["timestamp"].to_list() == [1_400_000_000]


def test_online_retail_from_download_to_source(mirrored: Server, tmp_path: Path) -> None:
    header = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"
    rows = (
        "536365,85123A,WHITE HANGING HEART T-LIGHT HOLDER,6,12/1/2010 8:26,2.55,17850,United Kingdom\n"
        "C536379,D,Discount,-1,12/1/2010 9:41,27.5,14527,United Kingdom\n"
        "536414,22139,,56,12/1/2010 11:52,0,,United Kingdom\n"
    )
    mirrored.add("/data.csv", (header + rows).encode())
    download_dataset("online-retail", tmp_path)
    block = yaml.safe_load(recipe_snippet(find("online-retail"), tmp_path))["domains"]["online_retail"]
    raw = make_source(block["source"], block["options"], "domains.x").read()
    assert raw.interactions.collect()["timestamp"].to_list() == [1_291_191_960]  # 2010-12-01 08:26 UTC
    assert raw.items.filter(pl.col("source_id") == "85123A").collect().height == 1


@pytest.mark.parametrize(
    ("name", "category", "words"),
    [
        ("amazon-2014", None, "comes by category"),
        ("amazon-2014", "Beuty", "Did you mean 'Beauty'"),
        ("movielens-1m", "Beauty", "has no categories"),
        ("movielens-2m", None, "unknown dataset"),
    ],
)
def test_wrong_requests_are_refused_before_any_connection(
    name: str, category: str | None, words: str, mirrored: Server, tmp_path: Path
) -> None:
    with pytest.raises(CatalexError, match=words):
        download_dataset(name, tmp_path, category=category)
    assert mirrored.requests == []


def test_a_category_cannot_lead_elsewhere(mirrored: Server, tmp_path: Path) -> None:
    with pytest.raises(CatalexError, match="no such category"):
        download_dataset("amazon-2014", tmp_path, category="../../etc")
