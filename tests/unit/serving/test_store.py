"""The store by itself: what the database refuses, versions of its tables, addresses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from catalex.errors import CatalexError
from catalex.serving import schema
from catalex.serving.connection import StoreUnavailableError, connect
from catalex.serving.store import Record, Store

ONE = Record(-1, "a", True, 0, "title", "text", ("c",), True, {"price": 1.0}, codes=(1, 2))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    found = Store.open(str(tmp_path / "store.db"))
    with found.writing() as writer:
        writer.seed("shop")
        writer.insert([ONE, replace(ONE, key="b", codes=(1, 3))], "g", {1: b"image"})
    return found


def test_what_is_written_is_read(store: Store) -> None:
    revision, records = store.changes("g", 0)
    assert revision == store.revision() == 1
    assert records == [
        replace(ONE, number=0, revision=1),
        replace(ONE, number=1, revision=1, key="b", codes=(1, 3), has_image=True),
    ]
    assert store.image(1) == b"image"
    assert store.image(0) is None
    assert [r.codes for r in store.changes("another", 0)[1]] == [None, None]
    with store.writing() as writer:
        changed = writer.update(replace(records[0], in_stock=False))
    assert store.changes("g", 1) == (2, [changed])
    assert store.changes("g", 2) == (2, [])


def test_a_transaction_that_changes_nothing_has_no_revision(store: Store) -> None:
    with store.writing():
        pass
    assert store.revision() == 1


def test_a_transaction_that_fails_leaves_nothing(store: Store) -> None:
    with pytest.raises(sa.exc.IntegrityError), store.writing() as writer:
        writer.insert([replace(ONE, key="c", codes=(1, 4)), replace(ONE, key="c")], "g", {})
    assert store.revision() == 1
    assert len(store.changes("g", 0)[1]) == 2
    with store.writing() as writer:
        assert writer.insert([replace(ONE, key="c", codes=(1, 4))], "g", {})[0].number == 2


@pytest.mark.parametrize("wrong", [replace(ONE, key="c"), replace(ONE, codes=(9, 9))])
def test_the_database_itself_refuses_a_second_owner(store: Store, wrong: Record) -> None:
    with pytest.raises(sa.exc.IntegrityError), store.writing() as writer:
        writer.insert([wrong], "g", {})
    with store.writing() as writer:  # a removed item is in nobody's way
        writer.remove(store.changes("g", 0)[1][0])
        writer.insert([wrong], "g", {})
    with store.writing() as writer:
        writer.insert([replace(ONE, key="d")], "other generation", {})


def test_commits_wait_for_the_disk(store: Store) -> None:
    with store.reading() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL


def test_an_older_store_is_migrated_and_a_newer_one_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def more(connection: sa.Connection) -> None:
        connection.execute(sa.text("ALTER TABLE items ADD COLUMN colour TEXT"))

    url = str(store.engine.url)
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", [*schema.MIGRATIONS, more])
        for _ in range(2):  # once is enough
            newer = Store.open(url)
            with newer.reading() as connection:
                assert "colour" in connection.execute(sa.text("SELECT * FROM items")).keys()  # noqa: SIM118
            assert newer.changes("g", 0) == store.changes("g", 0)
            newer.close()
    with pytest.raises(CatalexError, match=r"newer catalex.*version 2.*up to version 1"):
        Store.open(url)


def test_a_migration_that_fails_changes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(connection: sa.Connection) -> None:
        connection.execute(sa.text("ALTER TABLE items ADD COLUMN colour TEXT"))
        raise RuntimeError("half-way")

    monkeypatch.setattr(schema, "MIGRATIONS", [*schema.MIGRATIONS, broken])
    with pytest.raises(RuntimeError):
        Store.open(str(store.engine.url))
    with store.reading() as connection:
        assert "colour" not in connection.execute(sa.text("SELECT * FROM items")).keys()  # noqa: SIM118
        assert connection.execute(sa.text("SELECT version FROM catalex_schema")).scalar() == 1


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("sqlite://", "in memory would not survive"),
        ("sqlite:///:memory:", "in memory would not survive"),
        ("mysql://root:secret@host/db", "kind of database is not supported.*postgresql"),
        ("://:secret", "no address of a store"),
    ],
)
def test_bad_addresses(url: str, sentence: str) -> None:
    with pytest.raises(CatalexError, match=sentence) as refused:
        connect(url)
    assert "secret" not in str(refused.value)


def test_files_that_are_no_store(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database, but longer than a header of one would be" * 20)
    with pytest.raises(CatalexError, match="this file is no store"):
        Store.open(str(tmp_path / "text"))
    with pytest.raises(StoreUnavailableError, match="cannot be used now"):
        Store.open(str(tmp_path))
    with pytest.raises(CatalexError, match="folder of the store cannot be made"):
        Store.open(str(tmp_path / "text" / "below" / "store.db"))
