"""The public datasets catalex knows: where their publishers put them, on what terms, how a recipe reads them.

The addresses are the ones the publishers give. They are data, written in one table; nothing is fetched from
anywhere else, and no dataset is redistributed by catalex.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from catalex.data.archives import extract_zip
from catalex.data.download import download
from catalex.errors import lookup, nearest, user_error
from catalex.progress import say

GIGABYTE = 10**9

MCAULEY = "https://mcauleylab.ucsd.edu/public_datasets/data"
SNAP = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
GROUPLENS = "https://files.grouplens.org/datasets/movielens"
UCI = "https://archive.ics.uci.edu/static/public"


@dataclass(frozen=True)
class RemoteFile:
    """One file of a dataset. ``{category}`` in address and name stands for the chosen category.

    Attributes:
        url: Address as published.
        name: File name after the download.
        sha256: Checksum of a file that never changes, else None.
        size_limit: Most bytes that are accepted: generous, but a bound.
    """

    url: str
    name: str
    sha256: str | None = None
    size_limit: int = 60 * GIGABYTE

    @property
    def is_archive(self) -> bool:
        """Whether the file is unpacked after the download."""
        return self.name.endswith(".zip")


@dataclass(frozen=True)
class Dataset:
    """A public dataset.

    Attributes:
        name: Name on the command line.
        title: Full name.
        homepage: Page of the publisher.
        files: What is fetched.
        terms: Licence or terms of use, in one line; the publisher's page has the last word.
        citation: What to cite.
        source: Data source of catalex that reads it (`catalex.data.sources`).
        options: Options of that source; ``{folder}`` and ``{category}`` are filled in.
        categories: Valid categories; empty when there is only one.
        notes: What a user should know beforehand.
    """

    name: str
    title: str
    homepage: str
    files: tuple[RemoteFile, ...]
    terms: str
    citation: str
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    categories: tuple[str, ...] = ()
    notes: str = ""


# --- categories ---------------------------------------------------------------------------------------------


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


AMAZON_2023 = _words(
    """
    All_Beauty Amazon_Fashion Appliances Arts_Crafts_and_Sewing Automotive Baby_Products
    Beauty_and_Personal_Care Books CDs_and_Vinyl Cell_Phones_and_Accessories Clothing_Shoes_and_Jewelry
    Digital_Music Electronics Gift_Cards Grocery_and_Gourmet_Food Handmade_Products Health_and_Household
    Health_and_Personal_Care Home_and_Kitchen Industrial_and_Scientific Kindle_Store
    Magazine_Subscriptions Movies_and_TV Musical_Instruments Office_Products Patio_Lawn_and_Garden
    Pet_Supplies Software Sports_and_Outdoors Subscription_Boxes Tools_and_Home_Improvement
    Toys_and_Games Unknown Video_Games
    """
)

AMAZON_2018 = _words(
    """
    AMAZON_FASHION All_Beauty Appliances Arts_Crafts_and_Sewing Automotive Books CDs_and_Vinyl
    Cell_Phones_and_Accessories Clothing_Shoes_and_Jewelry Digital_Music Electronics Gift_Cards
    Grocery_and_Gourmet_Food Home_and_Kitchen Industrial_and_Scientific Kindle_Store Luxury_Beauty
    Magazine_Subscriptions Movies_and_TV Musical_Instruments Office_Products Patio_Lawn_and_Garden
    Pet_Supplies Prime_Pantry Software Sports_and_Outdoors Tools_and_Home_Improvement Toys_and_Games
    Video_Games
    """
)

AMAZON_2014 = _words(
    """
    Amazon_Instant_Video Apps_for_Android Automotive Baby Beauty Books CDs_and_Vinyl
    Cell_Phones_and_Accessories Clothing_Shoes_and_Jewelry Digital_Music Electronics
    Grocery_and_Gourmet_Food Health_and_Personal_Care Home_and_Kitchen Kindle_Store Movies_and_TV
    Musical_Instruments Office_Products Patio_Lawn_and_Garden Pet_Supplies Sports_and_Outdoors
    Tools_and_Home_Improvement Toys_and_Games Video_Games
    """
)

# --- the table ----------------------------------------------------------------------------------------------

AMAZON_TERMS = "the publisher assigns no licence and offers it primarily for research"
MOVIELENS_TERMS = "research use with citation; no redistribution or commercial use without permission"
CC_BY = "Creative Commons Attribution 4.0 (CC BY 4.0)"
HOU_2024 = "Hou et al.: Bridging Language and Items for Retrieval and Recommendation. arXiv 2403.03952, 2024"
NI_2019 = "Ni, Li, McAuley: Justifying Recommendations using Distantly-Labeled Reviews. EMNLP 2019"
MCAULEY_2015 = "McAuley et al.: Image-based Recommendations on Styles and Substitutes. SIGIR 2015"
HARPER_2015 = "Harper, Konstan: The MovieLens Datasets. ACM TiiS 5(4), article 19, 2015, doi 10.1145/2827872"
META_2023 = RemoteFile(
    f"{MCAULEY}/amazon_2023/raw/meta_categories/meta_{{category}}.jsonl.gz", "meta_{category}.jsonl.gz"
)

_TABLE = (
    Dataset(
        "amazon-2023",
        "Amazon Reviews 2023, all reviews of a category",
        "https://amazon-reviews-2023.github.io",
        (
            RemoteFile(
                f"{MCAULEY}/amazon_2023/raw/review_categories/{{category}}.jsonl.gz", "{category}.jsonl.gz"
            ),
            META_2023,
        ),
        AMAZON_TERMS,
        HOU_2024,
        "amazon2023",
        {"reviews": "{folder}/{category}.jsonl.gz", "metadata": "{folder}/meta_{category}.jsonl.gz"},
        AMAZON_2023,
        "Not filtered: let 'catalex prepare' make the 5-core. Books and Electronics have many gigabytes.",
    ),
    Dataset(
        "amazon-2023-5core",
        "Amazon Reviews 2023, 5-core ratings without texts, and metadata",
        "https://amazon-reviews-2023.github.io/data_processing/5core.html",
        (
            RemoteFile(
                f"{MCAULEY}/amazon_2023/benchmark/5core/rating_only/{{category}}.csv.gz", "{category}.csv.gz"
            ),
            META_2023,
        ),
        AMAZON_TERMS,
        HOU_2024,
        "amazon2023",
        {"reviews": "{folder}/{category}.csv.gz", "metadata": "{folder}/meta_{category}.jsonl.gz"},
        AMAZON_2023,
        "The smallest download for sequential recommendation. Not every category has a 5-core.",
    ),
    Dataset(
        "amazon-2018",
        "Amazon Review Data 2018, 5-core",
        "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2/",
        (
            RemoteFile(
                f"{MCAULEY}/amazon_v2/categoryFilesSmall/{{category}}_5.json.gz", "{category}_5.json.gz"
            ),
            RemoteFile(
                f"{MCAULEY}/amazon_v2/metaFiles2/meta_{{category}}.json.gz", "meta_{category}.json.gz"
            ),
        ),
        AMAZON_TERMS,
        NI_2019,
        "amazon2014",
        {"reviews": "{folder}/{category}_5.json.gz", "metadata": "{folder}/meta_{category}.json.gz"},
        AMAZON_2018,
    ),
    Dataset(
        "amazon-2014",
        "Amazon product data 2014, 5-core",
        "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html",
        (
            RemoteFile(f"{SNAP}/reviews_{{category}}_5.json.gz", "reviews_{category}_5.json.gz"),
            RemoteFile(f"{SNAP}/meta_{{category}}.json.gz", "meta_{category}.json.gz"),
        ),
        AMAZON_TERMS,
        MCAULEY_2015,
        "amazon2014",
        {"reviews": "{folder}/reviews_{category}_5.json.gz", "metadata": "{folder}/meta_{category}.json.gz"},
        AMAZON_2014,
        "Beauty, Sports_and_Outdoors and Toys_and_Games are the benchmarks of most papers.",
    ),
    Dataset(
        "movielens-1m",
        "MovieLens 1M",
        "https://grouplens.org/datasets/movielens/1m/",
        (
            RemoteFile(
                f"{GROUPLENS}/ml-1m.zip",
                "ml-1m.zip",
                "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
            ),
        ),
        MOVIELENS_TERMS,
        HARPER_2015,
        "movielens",
        {"folder": "{folder}/ml-1m"},
    ),
    Dataset(
        "movielens-25m",
        "MovieLens 25M",
        "https://grouplens.org/datasets/movielens/25m/",
        (
            RemoteFile(
                f"{GROUPLENS}/ml-25m.zip",
                "ml-25m.zip",
                "8b21cfb7eb1706b4ec0aac894368d90acf26ebdfb6aced3ebd4ad5bd1eb9c6aa",
            ),
        ),
        MOVIELENS_TERMS,
        HARPER_2015,
        "movielens",
        {"folder": "{folder}/ml-25m"},
    ),
    Dataset(
        "movielens-latest-small",
        "MovieLens latest, small",
        "https://grouplens.org/datasets/movielens/latest/",
        (RemoteFile(f"{GROUPLENS}/ml-latest-small.zip", "ml-latest-small.zip", None, GIGABYTE),),
        MOVIELENS_TERMS,
        HARPER_2015,
        "movielens",
        {"folder": "{folder}/ml-latest-small"},
        notes="The publisher renews it: good for trying out, not for published numbers.",
    ),
    Dataset(
        "online-retail",
        "UCI Online Retail (2010-2011)",
        "https://archive.ics.uci.edu/dataset/352/online+retail",
        (RemoteFile(f"{UCI}/352/data.csv", "online_retail.csv", None, GIGABYTE),),
        CC_BY,
        "Chen: Online Retail. UCI Machine Learning Repository, 2015, doi 10.24432/C5BW33",
        "tables",
        {
            "interactions": "{folder}/online_retail.csv",
            "columns": {"user": "CustomerID", "item": "StockCode", "timestamp": "InvoiceDate"},
            "item_columns": {"title": "Description"},
            "time_format": "%m/%d/%Y %H:%M",
            "keep": {"CustomerID": "present", "Quantity": ">0"},
        },
        notes="Rows without a customer and cancellations (negative quantities) are left out by the recipe.",
    ),
    Dataset(
        "online-retail-2",
        "UCI Online Retail II (2009-2011)",
        "https://archive.ics.uci.edu/dataset/502/online+retail+ii",
        (RemoteFile(f"{UCI}/502/online+retail+ii.zip", "online_retail_2.zip", None, GIGABYTE),),
        CC_BY,
        "Chen: Online Retail II. UCI Machine Learning Repository, 2012, doi 10.24432/C5CG6D",
        "tables",
        {
            "interactions": "{folder}/online_retail_2.csv",
            "columns": {"user": "Customer ID", "item": "StockCode", "timestamp": "InvoiceDate"},
            "item_columns": {"title": "Description"},
            "time_format": "iso",
            "keep": {"Customer ID": "present", "Quantity": ">0"},
        },
        notes="The archive holds a workbook with a sheet a year; save both, one below the other, as "
        "online_retail_2.csv with times like 2010-12-01 08:26:00 (docs/downloads.md shows a way).",
    ),
)

DATASETS: Mapping[str, Dataset] = MappingProxyType({dataset.name: dataset for dataset in _TABLE})
"""Every dataset by its name. A new one is one entry of the table above."""


# --- asking -------------------------------------------------------------------------------------------------


def list_datasets() -> list[Dataset]:
    """All datasets, in the order of the table."""
    return list(DATASETS.values())


def find(name: str) -> Dataset:
    """The dataset of that name.

    Raises:
        CatalexError: Listing the datasets and the nearest name.
    """
    return lookup(DATASETS, name, "dataset")


def describe(name: str) -> str:
    """What a person wants to know before the download: files, terms, citation, and the recipe."""
    dataset = find(name)
    lines = [f"{dataset.name}: {dataset.title}", f"page:     {dataset.homepage}"]
    lines += [f"file:     {file.url}" for file in dataset.files]
    lines += [f"terms:    {dataset.terms}", f"cite:     {dataset.citation}"]
    if dataset.notes:
        lines.append(f"note:     {dataset.notes}")
    if dataset.categories:
        lines.append(f"category: one of {', '.join(dataset.categories)}")
    category = "Video_Games" if "Video_Games" in dataset.categories else None
    lines += ["recipe:", recipe_snippet(dataset, Path("data"), category)]
    return "\n".join(lines)


def recipe_snippet(dataset: Dataset, folder: Path, category: str | None = None) -> str:
    """The `domains` block of a recipe (YAML) that reads the dataset from `folder`."""
    name = (category or dataset.name).lower().replace("-", "_")
    options = _filled(dataset.options, folder=str(folder), category=category)
    block = {"source": dataset.source, "options": options}
    text: str = yaml.safe_dump({"domains": {name: block}}, sort_keys=False, width=200)
    return text


def _filled(value: Any, **words: str | None) -> Any:
    """`value` with the words filled into every text inside it. Braces of other kinds stay as they are."""
    if isinstance(value, Mapping):
        return {key: _filled(inner, **words) for key, inner in value.items()}
    if isinstance(value, str):
        for word, text in words.items():
            value = value.replace("{" + word + "}", text or "")
    return value


# --- fetching -----------------------------------------------------------------------------------------------


def download_dataset(name: str, folder: Path, *, category: str | None = None) -> list[Path]:
    """Fetch a dataset into `folder` and unpack its archives. What is there already is not fetched again.

    Args:
        name: A name of `DATASETS`.
        folder: Where the files go.
        category: For datasets that come by category, and only for those.

    Returns:
        The files a source can read: downloads as they are, archives replaced by their content.

    Raises:
        CatalexError: When name or category is unknown, a download fails, or an archive is damaged or unsafe.
    """
    dataset = find(name)
    _check_category(dataset, category)
    say(f"{dataset.title}: {dataset.terms}")
    found: list[Path] = []
    for file in dataset.files:
        url, target = _filled(file.url, category=category), folder / _filled(file.name, category=category)
        download(url, target, sha256=file.sha256, size_limit=file.size_limit)
        found += extract_zip(target, folder) if file.is_archive else [target]
    return found


def _check_category(dataset: Dataset, category: str | None) -> None:
    if not dataset.categories and category is not None:
        raise user_error(
            f"dataset {dataset.name!r} has no categories", value=category, remedy="leave the category out"
        )
    if dataset.categories and category is None:
        raise user_error(
            f"dataset {dataset.name!r} comes by category",
            allowed=dataset.categories,
            remedy="name one of them as the category",
        )
    if category is not None and category not in dataset.categories:
        close = nearest(category, dataset.categories)
        raise user_error(
            f"dataset {dataset.name!r} has no such category",
            value=category,
            allowed=dataset.categories,
            remedy=f"did you mean {close!r}?" if close else "use one of the listed categories",
        )
