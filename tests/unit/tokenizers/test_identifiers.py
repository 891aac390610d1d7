"""The identifier table: round trip, additions, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalex.errors import CatalexError
from catalex.tokenizers.base import CodeSpace
from catalex.tokenizers.identifiers import IdentifierTable

SPACE = CodeSpace((4, 8, 8), (0, 1, 1))
CODES = np.array([[0, 1, 2], [3, 7, 7], [0, 1, 3]], np.int32)


def table() -> IdentifierTable:
    return IdentifierTable(SPACE).add("toys", CODES, "v1").add("office", CODES[:2], "v1")


def test_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "identifiers.parquet"
    table().save(path)
    assert pq.read_schema(path).names == ["domain", "item_id", "codes", "version"]
    assert pq.read_schema(path).field("codes").type == pa.list_(pa.int32())
    loaded = IdentifierTable.load(path)
    assert (loaded.space, loaded.unique, loaded.domains) == (SPACE, True, ["toys", "office"])
    np.testing.assert_array_equal(loaded.of("toys"), CODES)
    assert loaded.of("toys").dtype == np.int32
    assert loaded.versions == table().versions
    first = path.read_bytes()
    loaded.save(path)
    assert path.read_bytes() == first


def test_an_empty_table_survives(tmp_path: Path) -> None:
    IdentifierTable(SPACE).save(tmp_path / "t.parquet")
    assert IdentifierTable.load(tmp_path / "t.parquet").domains == []


def test_adding_items_leaves_old_rows_untouched() -> None:
    old = table()
    new = old.add("toys", np.array([[1, 1, 1]], np.int32), "v2")
    np.testing.assert_array_equal(new.of("toys")[:3], CODES)
    assert new.versions["toys"] == ("v1", "v1", "v1", "v2")
    assert len(old.of("toys")) == 3


def test_an_owned_identifier_is_refused() -> None:
    with pytest.raises(CatalexError, match=r"domain 'toys': items 1 and 3 have the same identifier"):
        table().add("toys", CODES[1:2], "v2")


def test_conflicts_may_be_kept_on_purpose(tmp_path: Path) -> None:
    kept = IdentifierTable(SPACE, unique=False).add("toys", CODES[[0, 0]], "v1")
    kept.save(tmp_path / "t.parquet")
    assert len(IdentifierTable.load(tmp_path / "t.parquet").of("toys")) == 2


def test_codes_out_of_range_and_unknown_domains_are_named() -> None:
    with pytest.raises(CatalexError, match=r"item 0 is out of range at level 2 \(found 8; allowed: 0 to 7\)"):
        IdentifierTable(SPACE).add("toys", np.array([[0, 8, 0]], np.int32), "v1")
    with pytest.raises(CatalexError, match="wrong number of codes"):
        IdentifierTable(SPACE).add("toys", np.zeros((1, 2), np.int32), "v1")
    with pytest.raises(CatalexError, match="Did you mean 'office'"):
        table().of("ofice")


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    table().save(path)
    good = pq.read_table(path)
    pq.write_table(good.slice(1), path)
    with pytest.raises(CatalexError, match="missing or out of order"):
        IdentifierTable.load(path)
    pq.write_table(good.replace_schema_metadata(None), path)
    with pytest.raises(CatalexError, match="what the codes mean"):
        IdentifierTable.load(path)
    double = good.set_column(2, good.schema.field("codes"), pa.array([[0, 0, 0]] * 5, pa.list_(pa.int32())))
    pq.write_table(double, path)
    with pytest.raises(CatalexError, match="same identifier"):
        IdentifierTable.load(path)
    short = good.set_column(2, good.schema.field("codes"), pa.array([[0, 0]] * 5, pa.list_(pa.int32())))
    pq.write_table(short, path)
    with pytest.raises(CatalexError, match="row 0: an identifier has the wrong number"):
        IdentifierTable.load(path)
    with pytest.raises(CatalexError, match="does not exist"):
        IdentifierTable.load(tmp_path / "none.parquet")
