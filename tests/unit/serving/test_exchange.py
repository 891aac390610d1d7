"""Import, export, snapshot and restore, by function and by command."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from catalex import sample
from catalex.artifacts import read_parquet, write_parquet
from catalex.bundle import Bundle
from catalex.data import columns as c
from catalex.errors import CatalexError
from catalex.serving.catalogue import LiveCatalogue
from catalex.serving.commands import catalogue_app
from catalex.serving.exchange import Imported, export_items, import_items
from catalex.serving.items import NewItem
from catalex.serving.snapshot import restore_snapshot, write_snapshot
from catalex.serving.store import Store
from support.live import ITEMS, small_bundle
from support.postgres import Cluster, binaries


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bundle(tmp_path_factory.mktemp("bundle") / "one")


@pytest.fixture
def live(bundle: Path, tmp_path: Path) -> Iterator[LiveCatalogue]:
    found = LiveCatalogue.open(Bundle.load(bundle), Store.open(str(tmp_path / "store.db")))
    yield found
    found.close()


def changed(live: LiveCatalogue) -> None:
    live.add([NewItem(f"n{i}", title=f"mug {i}", attributes={"price": i}) for i in range(5)])
    live.add([NewItem("picture", title="bird", image=b"bytes", in_stock=False)])
    live.remove("n2")
    live.update(next(iter(live)).key, in_stock=False, attributes={"weight": 2})


# --- import and export --------------------------------------------------------------------------------------


def test_an_export_comes_back_as_it_was(live: LiveCatalogue, bundle: Path, tmp_path: Path) -> None:
    changed(live)
    assert export_items(live, tmp_path / "all.parquet", images=True) == len(live)
    revision = live.revision
    assert import_items(live, tmp_path / "all.parquet") == Imported(0, 0, len(live))
    assert live.revision == revision
    fresh = LiveCatalogue.open(Bundle.load(bundle), Store.open(str(tmp_path / "fresh.db")))
    assert import_items(fresh, tmp_path / "all.parquet") == Imported(5, 1, ITEMS - 1)
    shown = [(i.key, i.title, i.text, i.categories, i.in_stock, i.attributes) for i in live]
    assert [(i.key, i.title, i.text, i.categories, i.in_stock, i.attributes) for i in fresh] == shown
    assert fresh.image("picture") == b"bytes"
    fresh.close()


def test_an_items_table_of_a_domain_can_be_imported(live: LiveCatalogue, tmp_path: Path) -> None:
    table = read_parquet(sample.path() / "year-two" / c.ITEMS_FILE).slice(ITEMS - 20, 100)
    write_parquet(tmp_path / "items.parquet", table)
    found = import_items(live, tmp_path / "items.parquet", chunk=30)
    assert (found.added, found.updated + found.unchanged) == (80, 20)
    assert len({item.identifier for item in live}) == ITEMS + 80
    again = import_items(live, tmp_path / "items.parquet", chunk=7)
    assert again == Imported(0, 0, 100)


def test_only_columns_of_the_file_are_updated(live: LiveCatalogue, tmp_path: Path) -> None:
    changed(live)
    rows = {"key": ["n0", "n1"], "attributes.price": [7.0, None], "in_stock": [None, False]}
    write_parquet(tmp_path / "prices.parquet", pa.table(rows))
    assert import_items(live, tmp_path / "prices.parquet") == Imported(0, 2, 0)
    first, second = live.get("n0"), live.get("n1")
    assert first is not None
    assert second is not None
    assert (first.attributes, first.in_stock, first.title) == ({"price": 7.0}, True, "mug 0")
    assert (second.attributes, second.in_stock, second.title) == ({}, False, "mug 1")


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"id": ["a"]}, "column 'key' is missing"),
        ({"key": ["a"], "titel": ["x"]}, "unknown column 'titel'.*[Dd]id you mean 'title'"),
        ({"key": ["a"], "price": [1.0]}, r"unknown column 'price'.*attributes\.<name>"),
        ({"key": ["a"], "attributes.price": ["cheap"]}, "must hold numbers"),
        ({"key": ["a", None], "title": ["x", "y"]}, "row 1: the item has no key"),
        ({"key": ["a"], "extra": ["[1]"]}, "row 0, extra: this is no JSON object"),
        ({"key": ["a", "a"], "title": ["x", "y"]}, "rows 0 to 1: a key occurs twice"),
        ({"key": ["a"]}, "rows 0 to 0: item 'a' has no content"),
    ],
)
def test_bad_files_are_refused(
    live: LiveCatalogue, tmp_path: Path, columns: dict[str, list[object]], sentence: str
) -> None:
    write_parquet(tmp_path / "bad.parquet", pa.table(columns))
    with pytest.raises(CatalexError, match=sentence):
        import_items(live, tmp_path / "bad.parquet")
    assert live.revision == 1


def test_no_file_and_no_parquet(live: LiveCatalogue, tmp_path: Path) -> None:
    with pytest.raises(CatalexError, match="does not exist"):
        import_items(live, tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("key\na\n")
    with pytest.raises(CatalexError, match="not a Parquet file"):
        import_items(live, tmp_path / "text.parquet")


# --- snapshot and restore -----------------------------------------------------------------------------------


def check_restored(live: LiveCatalogue, bundle: Path, url: str, folder: Path) -> None:
    manifest = write_snapshot(live.store, folder)
    assert (manifest["domain"], manifest["revision"]) == ("shop", live.revision)
    target = Store.open(url)
    restore_snapshot(target, folder)
    again = LiveCatalogue.open(Bundle.load(bundle), target)
    assert list(again) == list(live)
    assert again.revision == live.revision
    assert again.image("picture") == b"bytes"
    assert again.tokens_of(["n2"]) == live.tokens_of(["n2"])  # removed items stand in histories
    number = live.add([NewItem("next", title="clock")])[0]
    assert again.add([NewItem("next", title="clock")])[0] == number
    with pytest.raises(CatalexError, match=r"the store is not empty.*'shop' at revision"):
        restore_snapshot(target, folder)
    again.close()


def test_a_snapshot_comes_back_as_it_was(live: LiveCatalogue, bundle: Path, tmp_path: Path) -> None:
    changed(live)
    check_restored(live, bundle, str(tmp_path / "target.db"), tmp_path / "snapshot")


@pytest.mark.slow
def test_from_sqlite_to_postgresql(live: LiveCatalogue, bundle: Path, tmp_path: Path) -> None:
    if binaries() is None:
        pytest.skip("PostgreSQL's initdb and postgres are not installed")
    pytest.importorskip("psycopg", reason="the extra 'postgres' is not installed")
    changed(live)
    with Cluster() as cluster:
        check_restored(live, bundle, cluster.fresh(), tmp_path / "snapshot")


def test_damaged_snapshots_are_refused(live: LiveCatalogue, tmp_path: Path) -> None:
    write_snapshot(live.store, tmp_path / "good")
    with pytest.raises(CatalexError, match="exists already"):
        write_snapshot(live.store, tmp_path / "good")
    with pytest.raises(CatalexError, match=r"no snapshot\.json"):
        restore_snapshot(live.store, tmp_path)
    target = Store.open(str(tmp_path / "target.db"))
    for name in ("items.parquet", "identifiers.parquet"):
        bad = Path(shutil.copytree(tmp_path / "good", tmp_path / name.split(".")[0]))
        data = bytearray((bad / name).read_bytes())
        data[len(data) // 2] ^= 1
        (bad / name).write_bytes(data)
        with pytest.raises(CatalexError, match=f"{name}: .*differs from the snapshot"):
            restore_snapshot(target, bad)
    with pytest.raises(CatalexError, match="the store is empty"):
        write_snapshot(target, tmp_path / "empty")
    restore_snapshot(target, tmp_path / "good")
    target.close()


# --- the command line ---------------------------------------------------------------------------------------


def test_the_verbs(bundle: Path, tmp_path: Path) -> None:
    write_parquet(tmp_path / "new.parquet", pa.table({"key": ["a", "b"], "title": ["mug", "bird"]}))
    one, two = str(tmp_path / "one.db"), str(tmp_path / "two.db")
    run = CliRunner()

    def said(*arguments: object) -> str:
        result = run.invoke(catalogue_app, [str(a) for a in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    found = said("import", bundle, tmp_path / "new.parquet", "--store", one, "--device", "cpu")
    assert f"2 added, 0 updated, 0 as they were; {ITEMS + 2} items at revision 2" in found
    assert f"{ITEMS + 2} items at revision 2" in said("snapshot", tmp_path / "snapshot", "--store", one)
    assert f"{ITEMS + 2} items" in said("restore", tmp_path / "snapshot", "--store", two)
    assert f"{ITEMS + 2} items" in said("export", bundle, tmp_path / "all.parquet", "--store", two)
    table = read_parquet(tmp_path / "all.parquet")
    assert table["key"].to_pylist()[-2:] == ["a", "b"]
    assert len({tuple(row) for row in table["identifier"].to_pylist()}) == ITEMS + 2


def test_without_the_extra_the_verbs_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    needed = r"'sqlalchemy' is not installed\. Run: pip install 'catalex\[serve\]'"
    with pytest.raises(CatalexError, match=needed):
        CliRunner().invoke(catalogue_app, ["snapshot", "copy", "--store", "s.db"], catch_exceptions=False)
