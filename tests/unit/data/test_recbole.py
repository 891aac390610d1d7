"""Atomic files for RecBole: read back with plain string work, they are our split."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
import yaml

from catalex.data import columns as c
from catalex.data.domain import Domain
from catalex.data.recbole import write_recbole
from support.worlds import ring

ITEMS = 20


@pytest.fixture
def domain(tmp_path) -> Domain:
    titles = [f"Item\t{number}\nof a ring" for number in range(ITEMS)]
    rows = {name: pa.array([None] * ITEMS, c.ITEMS_SCHEMA.field(name).type) for name in c.ITEMS_SCHEMA.names}
    rows |= {
        c.ITEM_ID: pa.array(range(ITEMS), pa.int32()),
        c.TITLE: pa.array(titles),
        c.CATEGORIES: pa.array([["hair care", "care"] if number % 2 else None for number in range(ITEMS)]),
    }
    return Domain("ring", tmp_path, pa.table(rows, schema=c.ITEMS_SCHEMA), ring(), {})


def rows_of(path) -> tuple[list[str], list[list[str]]]:
    lines = path.read_text().splitlines()
    cells = [line.split("\t") for line in lines]
    assert len({len(row) for row in cells}) == 1
    return cells[0], cells[1:]


def test_every_prefix_and_every_case_is_a_row(domain, tmp_path):
    written = {path.name: path for path in write_recbole(domain, tmp_path / "out", 4)}
    assert set(written) == {
        f"ring.{e}" for e in ("train.inter", "valid.inter", "test.inter", "inter", "item", "yaml")
    }
    header, training = rows_of(written["ring.train.inter"])
    assert header == ["user_id:token", "item_id_list:token_seq", "item_id:token"]
    expected = []
    for user in range(30):
        items = domain.sequences.training[user].tolist()
        expected += [
            [str(user), " ".join(map(str, items[max(0, end - 4) : end])), str(items[end])]
            for end in range(1, len(items))
        ]
    assert training == expected
    for part, cases in (("valid", domain.sequences.validation), ("test", domain.sequences.test)):
        _, found = rows_of(written[f"ring.{part}.inter"])
        assert [int(row[0]) for row in found] == cases.users.tolist()
        assert [int(row[2]) for row in found] == cases.targets.tolist()
        assert found[3][1] == " ".join(map(str, cases.histories[3][-4:]))


def test_all_interactions_and_items_are_there_without_stray_separators(domain, tmp_path):
    written = {path.name: path for path in write_recbole(domain, tmp_path)}
    header, events = rows_of(written["ring.inter"])
    assert header == ["user_id:token", "item_id:token", "timestamp:float"]
    assert np.array_equal([int(row[1]) for row in events], domain.sequences.all.items)
    header, items = rows_of(written["ring.item"])
    assert header[1:] == ["title:token_seq", "brand:token", "categories:token_seq"]
    assert items[3] == ["3", "Item 3 of a ring", "", "hair_care care"]
    assert items[4][3] == ""


def test_the_settings_name_what_was_written(domain, tmp_path):
    settings = yaml.safe_load((write_recbole(domain, tmp_path, 7)[-1]).read_text())
    assert settings["benchmark_filename"] == ["train", "valid", "test"]
    assert settings["MAX_ITEM_LIST_LENGTH"] == 7
    assert json.dumps(settings["eval_args"]) == '{"order": "TO", "mode": "full"}'
