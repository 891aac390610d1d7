"""The development data: every domain comes through `prepare` unchanged, with the published counts."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from catalex.data.domain import Domain
from catalex.data.prepare import PrepareOptions, prepare
from catalex.data.statistics import statistics

DATA = Path(__file__).resolve().parents[3] / ".." / "shared" / "data"

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the development data is not on this machine")

DOMAINS = {
    "beauty": (22_363, 12_101, 198_502, 8.9, 0),
    "toys": (19_412, 11_924, 167_597, 8.6, 0),
    "games": (50_546, 16_859, 440_264, 8.7, 0),
    "office": (4_905, 2_420, 53_258, 10.9, 0),
    "sports": (35_598, 18_357, 296_337, 8.3, 0),
    "yelp": (30_431, 20_033, 316_354, 10.4, 0),
    "movies": (6_040, 3_416, 999_611, 165.5, 2_758),
    "microlens": (49_887, 19_217, 359_048, 7.2, 0),
    "online_retail": (5_585, 4_225, 764_563, 136.9, 0),
}
"""Users, items, interactions, mean length, images."""

FIVE_CORES = ["beauty", "toys", "office", "sports", "yelp", "movies", "online_retail"]


@pytest.mark.parametrize("name", DOMAINS)
def test_counts_are_the_published_ones(name: str, tmp_path: Path) -> None:
    options = PrepareOptions(source="canonical", options={"folder": str(DATA / name)})
    manifest = prepare(name, options, tmp_path)
    domain = Domain.load(tmp_path)
    found = statistics(domain)
    counted = tuple(found[key] for key in ("users", "items", "interactions"))
    assert (*counted, round(found["mean_length"], 1), found["images"]) == DOMAINS[name]
    assert domain.split_id == manifest["split_id"]
    assert len(domain.sequences.test) == len(domain.sequences.validation) == found["users"]
    columns = ["user_id", "item_id", "position"]
    before = pl.read_parquet(DATA / name / "interactions.parquet", columns=columns)
    assert pl.read_parquet(tmp_path / "interactions.parquet", columns=columns).equals(before)
    source_ids = pl.read_parquet(DATA / name / "items.parquet")["source_id"].to_list()
    assert domain.items["source_id"].to_pylist() == source_ids


@pytest.mark.parametrize("name", FIVE_CORES)
def test_a_five_core_stays_a_five_core(name: str, tmp_path: Path) -> None:
    options = PrepareOptions(source="canonical", options={"folder": str(DATA / name)}, min_interactions=5)
    counts = prepare(name, options, tmp_path)["counts"]
    assert tuple(counts.values()) == DOMAINS[name][:3]


def test_global_time_on_real_times(tmp_path: Path) -> None:
    options = PrepareOptions(
        source="canonical", options={"folder": str(DATA / "online_retail")}, split="global-time"
    )
    manifest = prepare("online_retail", options, tmp_path)
    events = pl.read_parquet(tmp_path / "interactions.parquet")
    bounds = events.group_by("split").agg(
        pl.col("timestamp").min().alias("low"), pl.col("timestamp").max().alias("high")
    )
    (_, _, train), (_, low, high), (_, test, _) = bounds.sort("split").rows()
    assert train < low <= high < test
    assert [low, test] == manifest["split"]["cuts"]
    parts = manifest["split"]["interactions"]
    assert parts["train"] == pytest.approx(0.8 * events.height, rel=0.01)
    assert parts["test"] == pytest.approx(0.1 * events.height, rel=0.05)
