"""Results on disk, their summary, aggregation over seeds and comparison of systems."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from catalex.artifacts import write_parquet
from catalex.errors import CatalexError
from catalex.evaluation import Result, aggregate, compare, summary

USERS = 400


def result(system="a", seed=0, ranks=None, **changes) -> Result:
    generator = np.random.default_rng(seed)
    ranks = generator.integers(0, 30, USERS) if ranks is None else ranks
    top = generator.integers(0, 20, (len(ranks), 10))
    top[0, 4:] = -1
    base = Result(
        system,
        "beauty",
        "split",
        seed,
        (5, 10),
        np.arange(len(ranks)),
        np.arange(len(ranks)) % 20,
        ranks,
        top,
    )
    return replace(base, **changes)


def test_written_and_read_back(tmp_path):
    before = result()
    before.write(tmp_path / "ranks.parquet")
    after = Result.read(tmp_path / "ranks.parquet")
    for name in ("system", "domain", "split_id", "seed", "ks"):
        assert getattr(after, name) == getattr(before, name)
    for name in ("users", "targets", "ranks", "top"):
        assert np.array_equal(getattr(after, name), getattr(before, name))


def test_result_without_users(tmp_path):
    empty = result(ranks=np.zeros(1, np.int64))
    empty = replace(empty, **{n: getattr(empty, n)[:0] for n in ("users", "targets", "ranks", "top")})
    empty.write(tmp_path / "ranks.parquet")
    assert Result.read(tmp_path / "ranks.parquet").top.shape == (0, 10)
    assert summary(empty, np.ones(20, np.int64))["recall@10"] == 0.0


def test_another_table_is_refused(tmp_path):
    columns = {"user_id": [1], "target": [1], "rank": [1], "top": [[1]]}
    write_parquet(tmp_path / "x.parquet", pa.table(columns))
    with pytest.raises(CatalexError, match="not a result"):
        Result.read(tmp_path / "x.parquet")


def test_summary_is_json_and_its_strata_add_up():
    popularity = np.arange(20) * 5
    found = summary(result(ranks=np.tile([1, 4, 12, 7], USERS // 4)), popularity)
    assert found["recall@5"] == 0.5
    assert found["ndcg@10"] == pytest.approx(0.4410, abs=5e-5)
    assert found["users"] == USERS
    parts = [row for row in found["strata"] if row["partition"]]
    assert sum(row["users"] * row["ndcg@10"] for row in parts if row["users"]) / USERS == pytest.approx(
        found["ndcg@10"]
    )
    assert json.loads(json.dumps(found)) == found


def test_unknown_metric_is_refused():
    with pytest.raises(CatalexError, match=r"unknown metric .*'map@10'"):
        result().values("map@10")


def test_mean_and_deviation_over_seeds():
    runs = [result(seed=seed) for seed in (2, 0, 1)]
    (row,) = aggregate(runs)
    means = [run.values("ndcg@10").mean() for run in runs]
    assert row["seeds"] == [0, 1, 2]
    assert row["ndcg@10"]["mean"] == pytest.approx(np.mean(means))
    assert row["ndcg@10"]["sd"] == pytest.approx(np.std(means, ddof=1))
    assert aggregate([result()])[0]["ndcg@10"]["sd"] is None


def test_a_clear_winner_and_a_copy():
    base = result("base", ranks=np.full(USERS, 9))
    good = result("good", ranks=np.tile([1, 2], USERS // 2))
    rows = compare([base, good, replace(base, system="copy")], "base")
    verdicts = {(row["system"], row["metric"]): row["verdict"] for row in rows}
    assert verdicts == {
        ("good", "ndcg@10"): "better",
        ("copy", "ndcg@10"): "no difference",
        ("good", "recall@10"): "no difference",
        ("copy", "recall@10"): "no difference",
    }
    assert rows[0]["p_holm"] == pytest.approx(min(1, 2 * rows[0]["p"]))
    assert rows[0]["low"] <= rows[0]["difference"] <= rows[0]["high"]


def test_worse_is_said_and_seeds_that_disagree_are_not_a_difference():
    base = result("base", ranks=np.tile([1, 11, 11, 11], USERS // 4))
    bad = result("bad", ranks=np.full(USERS, 11))
    assert compare([base, bad], "base")[0]["verdict"] == "worse"
    lucky = result("mixed", seed=1, ranks=np.full(USERS, 1))
    row = compare([base, replace(bad, system="mixed"), lucky], "base")[0]
    assert not row["seeds_agree"]
    assert row["p_holm"] < 0.01
    assert row["verdict"] == "no difference"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split_id": "other"}, "different splits of beauty"),
        ({"domain": "toys"}, "different domains"),
        ({"users": np.arange(USERS) + 1}, "different users"),
        ({"targets": np.zeros(USERS, np.int64)}, "different users"),
        ({"system": "a"}, "two results with one seed"),
    ],
)
def test_incomparable_results_are_refused(changes, message):
    other = replace(result("b"), **changes)
    with pytest.raises(CatalexError, match=message):
        compare([result("a"), other], "a")


def test_missing_reference_and_nothing_to_compare():
    with pytest.raises(CatalexError, match="no result of the reference system 'x'"):
        compare([result("a")], "x")
    with pytest.raises(CatalexError, match="no results"):
        compare([], "a")
