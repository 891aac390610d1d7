"""The packaged sample is what its attribution says, and the script that makes it does what it says."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalex import sample
from catalex.artifacts import hash_file, read_parquet, write_parquet
from catalex.data import columns as c
from catalex.errors import CatalexError

ROOT = Path(__file__).resolve().parents[2]
DEVELOPMENT_DATA = ROOT.parent / "shared" / "data" / "online_retail"
MEBIBYTE = 2**20


def _load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_sample", ROOT / "scripts" / "make_sample.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_sample"] = module
    spec.loader.exec_module(module)
    return module


script = _load_script()


def _read(year: str, root: Path | None = None) -> tuple[pa.Table, pa.Table]:
    folder = (root or sample.path()) / year
    return read_parquet(folder / c.ITEMS_FILE), read_parquet(folder / c.INTERACTIONS_FILE)


# --- the shipped files ------------------------------------------------------------------------------------


def test_the_sample_is_small() -> None:
    sizes = [file.stat().st_size for file in sample.path().rglob("*.parquet")]
    assert len(sizes) == 4
    assert sum(sizes) < 1.5 * MEBIBYTE


@pytest.mark.parametrize("year", sample.DOMAINS)
def test_a_year_is_a_raw_canonical_domain(year: str) -> None:
    items, events = _read(year)
    assert items.schema.equals(c.ITEMS_SCHEMA)
    assert events.schema.names == [name for name in c.INTERACTIONS_SCHEMA.names if name != c.SPLIT]
    assert items[c.ITEM_ID].to_pylist() == list(range(items.num_rows))
    assert len(set(items[c.SOURCE_ID].to_pylist())) == items.num_rows
    assert all(items[c.TITLE].to_pylist())
    users, ids, positions, times = (events[name].to_numpy() for name in events.schema.names)
    same = users[1:] == users[:-1]
    assert set(np.unique(users)) == set(range(users.max() + 1))
    assert set(np.unique(ids)) == set(range(items.num_rows))
    assert (np.diff(users) >= 0).all()
    assert (positions[1:] == np.where(same, positions[:-1] + 1, 0)).all()
    assert (times[1:] >= times[:-1])[same].all()


@pytest.mark.parametrize("year", sample.DOMAINS)
def test_a_year_is_a_core_without_repeats(year: str) -> None:
    events = _read(year)[1]
    users, ids = events[c.USER_ID].to_numpy(), events[c.ITEM_ID].to_numpy()
    assert len(set(zip(users.tolist(), ids.tolist(), strict=True))) == len(users)
    assert np.bincount(users).min() >= script.CORE
    assert np.bincount(users).max() <= script.MOST
    assert np.bincount(ids).min() >= script.CORE


def test_the_years_do_not_overlap_and_the_second_has_new_products() -> None:
    (items_one, one), (items_two, two) = (_read(year) for year in sample.DOMAINS)
    assert one[c.TIMESTAMP].to_numpy().max() < script.BOUNDARY <= two[c.TIMESTAMP].to_numpy().min()
    new = set(items_two[c.SOURCE_ID].to_pylist()) - set(items_one[c.SOURCE_ID].to_pylist())
    assert f"{len(new)} products of `year-two` are not in `year-one`" in _attribution()


def test_the_attribution_gives_the_counts() -> None:
    for year in sample.DOMAINS:
        items, events = _read(year)
        row = next(line for line in _attribution().splitlines() if line.startswith(f"| {year}"))
        counts = [int(n.replace(",", "")) for n in re.findall(r"\| ([\d,]+) (?=\|)", row)]
        assert counts == [len(events[c.USER_ID].unique()), items.num_rows, events.num_rows]


def test_the_attribution_names_author_licence_and_source() -> None:
    for needed in ("Chen, D.", "CC BY 4.0", "10.24432/C5BW33", "10.24432/C5CG6D", "What was changed"):
        assert needed in _attribution()


def _attribution() -> str:
    return (sample.path() / "ATTRIBUTION.md").read_text(encoding="utf-8")


# --- the script -------------------------------------------------------------------------------------------


def _write_shop(folder: Path, seed: int = 0, times: bool = True) -> Path:
    """60 customers who buy 30 products over two years, some of them again."""
    random = np.random.default_rng(seed)
    rows = []
    for user in range(60):
        moments = np.sort(random.integers(script.BOUNDARY - 10**7, script.BOUNDARY + 10**7, size=24))
        rows += [
            (user, int(random.integers(30)), position, int(moment)) for position, moment in enumerate(moments)
        ]
    users, ids, positions, moments = map(list, zip(*rows, strict=True))
    schema = pa.schema([c.INTERACTIONS_SCHEMA.field(name) for name in script.SAMPLE_COLUMNS])
    moments = moments if times else [None] * len(moments)
    write_parquet(folder / c.INTERACTIONS_FILE, pa.table([users, ids, positions, moments], schema=schema))
    columns = {name: pa.nulls(30, c.ITEMS_SCHEMA.field(name).type) for name in c.ITEMS_SCHEMA.names}
    columns[c.ITEM_ID] = pa.array(range(30), pa.int32())
    columns[c.SOURCE_ID] = columns[c.TITLE] = pa.array([f"code {i}" for i in range(30)])
    write_parquet(folder / c.ITEMS_FILE, pa.table(columns, schema=c.ITEMS_SCHEMA))
    return folder


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    shop = _write_shop(tmp_path / "shop")
    facts = [script.make_sample(shop, tmp_path / name, customers=40) for name in ("a", "b")]
    assert facts[0] == facts[1]
    assert facts[0]["year-one"]["purchases"] > 0
    hashes = [
        [hash_file(file) for file in sorted((tmp_path / name).rglob("*.parquet"))] for name in ("a", "b")
    ]
    assert len(hashes[0]) == 4
    assert hashes[0] == hashes[1]


def test_another_seed_draws_other_customers(tmp_path: Path) -> None:
    shop = _write_shop(tmp_path / "shop")
    for seed in (1, 2):
        script.make_sample(shop, tmp_path / str(seed), customers=40, seed=seed)
    assert not _read("year-one", tmp_path / "1")[1].equals(_read("year-one", tmp_path / "2")[1])


def test_renumbered_products_keep_their_codes(tmp_path: Path) -> None:
    shop = _write_shop(tmp_path / "shop")
    events = read_parquet(shop / c.INTERACTIONS_FILE)
    code_at = {
        (t, f"code {i}")
        for t, i in zip(events[c.TIMESTAMP].to_pylist(), events[c.ITEM_ID].to_pylist(), strict=True)
    }
    script.make_sample(shop, tmp_path / "sample", customers=40)
    for year in sample.DOMAINS:
        items, kept = _read(year, tmp_path / "sample")
        codes = items[c.SOURCE_ID].to_pylist()
        pairs = zip(kept[c.TIMESTAMP].to_pylist(), kept[c.ITEM_ID].to_pylist(), strict=True)
        assert {(time, codes[item]) for time, item in pairs} <= code_at


def test_null_timestamps_are_refused(tmp_path: Path) -> None:
    shop = _write_shop(tmp_path / "shop", times=False)
    with pytest.raises(
        CatalexError, match=r"interactions.parquet: column 'timestamp' has null values\. Keep the time"
    ):
        script.make_sample(shop, tmp_path / "sample")


def test_a_missing_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CatalexError, match=r"items.parquet: the file does not exist"):
        script.make_sample(tmp_path / "nowhere", tmp_path / "sample")


PURCHASES = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=60)


@given(PURCHASES)
def test_first_purchases_agree_with_a_loop(pairs: list[tuple[int, int]]) -> None:
    pairs.sort(key=lambda pair: pair[0])
    expected = list(dict.fromkeys(pairs))
    found = script.first_purchases(_events(pairs))
    assert list(zip(found.users.tolist(), found.items.tolist(), strict=True)) == expected


@given(PURCHASES, st.integers(1, 4))
def test_the_core_agrees_with_removal_one_at_a_time(pairs: list[tuple[int, int]], least: int) -> None:
    pairs.sort(key=lambda pair: pair[0])
    rest = list(pairs)
    while True:
        users, items = Counter(u for u, _ in rest), Counter(i for _, i in rest)
        weak = next((pair for pair in rest if users[pair[0]] < least or items[pair[1]] < least), None)
        if weak is None:
            break
        rest.remove(weak)
    found = script.core(_events(pairs), least)
    assert sorted(zip(found.users.tolist(), found.items.tolist(), strict=True)) == sorted(rest)


def _events(pairs: list[tuple[int, int]]) -> object:
    users, items = (np.array(column, np.int64) for column in zip(*pairs, strict=True))
    return script.Events(users, items, np.arange(len(pairs)))


@pytest.mark.skipif(
    not DEVELOPMENT_DATA.is_dir(), reason="needs the development data (UCI Online Retail, prepared)"
)
def test_the_script_makes_the_shipped_sample(tmp_path: Path) -> None:
    script.make_sample(DEVELOPMENT_DATA, tmp_path)
    for year in sample.DOMAINS:
        for made, shipped in zip(_read(year, tmp_path), _read(year), strict=True):
            assert made.equals(shipped)
