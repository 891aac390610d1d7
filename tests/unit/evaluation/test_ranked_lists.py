"""Ranked lists from elsewhere: the same numbers as for our own, and no list that flatters."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalex.data.histories import Cases
from catalex.errors import CatalexError
from catalex.evaluation.protocol import evaluate
from catalex.evaluation.ranked_lists import judge_lists, read_lists
from catalex.recommenders import make_recommender
from support.worlds import domain, ring

ITEMS = 20
SPLIT = ring()
TEST = SPLIT.test


@pytest.fixture(scope="module")
def lists() -> np.ndarray:
    recommender = make_recommender({"name": "transitions"}, "here")
    recommender.fit([domain(SPLIT)], seed=0, device="cpu")
    return recommender.recommend(TEST.histories, 10).items


def judge(path, cases: Cases = TEST, ks=(5, 10), **options):
    return judge_lists(
        path, cases, items=ITEMS, system="theirs", domain="ring", split_id=SPLIT.split_id, ks=ks, **options
    )


def wide(path, lists, users=TEST.users):
    pq.write_table(pa.table({"user_id": users, "items": [row.tolist() for row in lists]}), path)
    return path


def test_every_layout_gives_what_our_own_evaluation_gives(lists, tmp_path):
    recommender = make_recommender({"name": "transitions"}, "here")
    recommender.fit([domain(SPLIT)], seed=0, device="cpu")
    own = evaluate(
        recommender, TEST, system="theirs", domain="ring", split_id=SPLIT.split_id, seed=0, ks=(5, 10)
    )
    mixed = np.random.default_rng(0).permutation(len(TEST))
    long = {
        "user_id": np.repeat(TEST.users, 10)[::-1],
        "item_id": lists.ravel()[::-1],
        "rank": np.tile(np.arange(1, 11), len(TEST))[::-1],
    }
    pq.write_table(pa.table(long), tmp_path / "long.parquet")
    texts = [f"{user},{' '.join(map(str, row))}" for user, row in zip(TEST.users, lists, strict=True)]
    (tmp_path / "wide.csv").write_text("\n".join(["user_id,items", *texts]))
    for path in (
        wide(tmp_path / "wide.parquet", lists[mixed], TEST.users[mixed]),
        tmp_path / "long.parquet",
        tmp_path / "wide.csv",
    ):
        found = judge(path)
        np.testing.assert_array_equal(found.top, lists)
        for metric in ("recall@5", "recall@10", "ndcg@5", "ndcg@10"):
            # ours ranks equal scores pessimistically, a list has its order: it can be better, never worse
            assert found.values(metric).mean() >= own.values(metric).mean() - 1e-12
        assert found.split_id == own.split_id


def test_the_history_leaves_a_list_as_it_leaves_our_own_ranking(tmp_path):
    recommender = make_recommender({"name": "popularity"}, "here")
    recommender.fit([domain(SPLIT)], seed=0, device="cpu")
    whole = recommender.recommend(TEST.histories, ITEMS).items
    found = judge(wide(tmp_path / "lists.parquet", whole), exclude_history=True)
    own = recommender.recommend(TEST.histories, 10, TEST.known)
    np.testing.assert_array_equal(found.top, own.items)
    np.testing.assert_array_equal(found.ranks[found.ranks <= 10], own.ranks(TEST.targets)[found.ranks <= 10])
    assert (found.ranks != judge(tmp_path / "lists.parquet").ranks).any()


def test_a_target_that_is_not_listed_was_not_found(tmp_path):
    cases = Cases(np.array([0, 1, 2]), TEST.histories.take(np.arange(3)), np.array([4, 19, 9]))
    path = wide(tmp_path / "a.parquet", np.tile(np.arange(10), (3, 1)), cases.users)
    assert judge(path, cases).ranks.tolist() == [5, 0, 10]


def test_a_list_may_be_longer_than_needed(lists, tmp_path):
    rest = np.stack([np.r_[row, np.setdiff1d(np.arange(ITEMS), row)] for row in lists])
    found = judge(wide(tmp_path / "a.parquet", rest))
    assert found.top.shape == (len(TEST), 10)
    assert (found.ranks > 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda users, rows: (users[1:], rows[1:]), r"1 of 30 test users have no list.*flatter"),
        (
            lambda users, rows: (np.r_[users, 99], np.r_[rows, rows[:1]]),
            "1 users of the file are no test users",
        ),
        (lambda users, rows: (np.r_[users, users[:1]], np.r_[rows, rows[:1]]), "a user has two lists"),
        (lambda users, rows: (users, rows[:, :9]), r"list of 30 users is shorter than the longest K"),
        (lambda users, rows: (users, np.where(rows == rows[0, 0], 20, rows)), r"does not exist.*0 to 19"),
        (lambda users, rows: (users, np.where(np.arange(10) == 9, rows[:, :1], rows)), "names an item twice"),
        (lambda users, rows: (users, np.where(rows == rows[0, 0], -5, rows)), "does not exist"),
    ],
)
def test_lists_that_are_not_whole_are_refused(lists, change, message, tmp_path):
    users, rows = change(TEST.users, lists)
    with pytest.raises(CatalexError, match=message):
        judge(wide(tmp_path / "a.parquet", rows, users))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "user,items\n1,2\n", "neither layout"),
        ("a.csv", "user_id,items\nB07,2\n", "whole numbers"),
        ("a.csv", "user_id,items\n1,B07 B08\n", "not a number.*'B07'"),
        ("a.csv", "user_id,item_id,rank\n1,5,1\n1,6,1\n", "two items of one rank"),
        ("a.csv", "", "not readable CSV"),
        ("a.parquet", "user_id,items\n", "not a readable Parquet file"),
    ],
)
def test_files_of_another_kind_are_refused(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(CatalexError, match=message):
        read_lists(tmp_path / name)


def test_a_missing_file_is_told(tmp_path):
    for name in ("none.csv", "none.parquet"):
        with pytest.raises(CatalexError, match="does not exist"):
            read_lists(tmp_path / name)
