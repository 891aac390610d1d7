"""The live catalogue: adding, changing, removing, replicas. One kit over SQLite and over PostgreSQL."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from catalex.bundle import Bundle
from catalex.data.histories import Histories
from catalex.errors import CatalexError
from catalex.features import ItemContent
from catalex.serving.catalogue import LiveCatalogue
from catalex.serving.connection import StoreUnavailableError
from catalex.serving.items import Item, KeyTakenError, NewItem, Selection, UnknownItemError
from catalex.serving.store import Store
from catalex.tokenizers.conflicts import resolve
from support.live import ITEMS, small_bundle
from support.postgres import Cluster, binaries

MUG = NewItem("mug", title="RED RETROSPOT MUG", categories=("Kitchen", "Mugs"), attributes={"price": 2.5})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bundle(tmp_path_factory.mktemp("bundle") / "one")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the same domain with another tokenizer, and a few more items."""
    return small_bundle(tmp_path_factory.mktemp("bundle") / "two", seed=1, items=ITEMS + 5)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    if binaries() is None:
        pytest.skip("PostgreSQL's initdb and postgres are not installed")
    pytest.importorskip("psycopg", reason="the extra 'postgres' is not installed")
    with Cluster() as running:
        yield running


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "store.db")
    return str(request.getfixturevalue("cluster").fresh())


@pytest.fixture
def opened(bundle: Path, url: str) -> Iterator[Callable[..., LiveCatalogue]]:
    """Opens replicas on one store."""
    stores: list[Store] = []
    living: list[LiveCatalogue] = []

    def one(folder: Path = bundle) -> LiveCatalogue:
        stores.append(Store.open(url))
        living.append(LiveCatalogue.open(Bundle.load(folder), stores[-1]))
        return living[-1]

    yield one
    for live in living:
        live.close()
    for store in stores:
        store.close()


def consistent(live: LiveCatalogue) -> None:
    """Memory, trie and store tell the same."""
    items = list(live)
    assert len({item.identifier for item in items}) == len(items) == len(live)
    assert len({item.key for item in items}) == len(items)
    tokens = live.vocabulary.tokens(np.array([item.identifier for item in items], np.int32))
    assert live.engine.trie.item_of(tokens).tolist() == [item.number for item in items]
    revision, records = live.store.changes(live.generation, 0)
    assert revision == live.revision
    stored = {r.number: (r.key, r.codes, r.title, r.in_stock, dict(r.attributes)) for r in records if r.live}
    assert stored == {i.number: (i.key, i.identifier, i.title, i.in_stock, dict(i.attributes)) for i in items}


# --- opening ------------------------------------------------------------------------------------------------


def test_the_first_opening_holds_the_bundle(opened: Callable[..., LiveCatalogue], bundle: Path) -> None:
    live = opened()
    whole = Bundle.load(bundle)
    assert len(live) == ITEMS
    codes = whole.identifiers.of("shop")
    assert [item.identifier for item in live] == [tuple(row) for row in codes.tolist()]
    assert [item.title for item in live] == whole.titles
    history = [item.key for item in list(live)[3:6]]
    found = live.recommend(live.tokens_of(history), 10)
    expected = whole.recommend([3, 4, 5], 10)
    assert [(item.number, pytest.approx(score, abs=1e-4)) for item, score in found] == [
        (one.item_id, one.score) for one in expected
    ]
    consistent(live)


def test_what_was_changed_is_there_after_opening_again(opened: Callable[..., LiveCatalogue]) -> None:
    live = opened()
    live.add([MUG, NewItem("picture", title="bird", image=b"bytes")])
    live.update("mug", in_stock=False, attributes={"weight": 1})
    gone = next(iter(live))
    assert live.remove(gone.key)
    again = opened()
    assert list(again) == list(live)
    assert again.revision == live.revision == 4
    assert again.image("picture") == b"bytes"
    assert again.image("mug") is None
    assert again.tokens_of([gone.key, "mug"]) == live.tokens_of([gone.key, "mug"])
    consistent(again)


def test_a_store_of_another_domain_is_refused(opened: Callable[..., LiveCatalogue], tmp_path: Path) -> None:
    opened()
    with pytest.raises(CatalexError, match=r"another domain.*'shop'.*allowed: garden.*another store"):
        opened(small_bundle(tmp_path / "garden", name="garden"))


# --- adding -------------------------------------------------------------------------------------------------


def test_an_added_item_is_recommendable_at_once(opened: Callable[..., LiveCatalogue]) -> None:
    live = opened()
    before = {item.key: item.identifier for item in live}
    (item,) = live.add([MUG])
    assert item.number == ITEMS
    assert (item.title, item.categories, item.attributes) == (MUG.title, MUG.categories, {"price": 2.5})
    assert {i.key: i.identifier for i in live if i.key != "mug"} == before
    history = live.tokens_of([next(iter(before))])
    assert [i.key for i, _ in live.recommend(history, 1, selection=Selection(categories=("Mugs",)))] == [
        "mug"
    ]
    assert len(live.tokens_of(["mug"])) == live.vocabulary.space.levels + 1
    consistent(live)


def test_the_identifier_is_that_of_the_conflict_rule(opened: Callable[..., LiveCatalogue]) -> None:
    """One by one against `resolve` with everything reserved, until prefixes are full and the rule climbs."""
    live = opened()
    reader = live.reader
    for count in range(60):
        new = NewItem(f"n{count}", title="RED RETROSPOT MUG" if count % 3 else f"mug of {count} birds")
        vectors = reader.vectors([_content(reader.text_of(new))])
        owned = np.array([item.identifier for item in live], np.int32)
        expected = resolve(
            reader.tokenizer, vectors, reader.codes(vectors), method="reassign", reserved=owned
        )
        assert live.tokenize(reader.text_of(new)) == tuple(expected[0].tolist())
        assert live.add([new])[0].identifier == tuple(expected[0].tolist())
    assert len({item.identifier[:2] for item in live if item.key.startswith("n")}) > 2  # it climbed
    consistent(live)


def test_digits_count_on(tmp_path: Path) -> None:
    folder = small_bundle(tmp_path / "digits", conflicts="digit")
    live = LiveCatalogue.open(Bundle.load(folder), Store.open(str(tmp_path / "store.db")))
    found = live.add([NewItem(f"n{i}", text="red retrospot mug") for i in range(2)])
    found += live.add([NewItem("last", text="red retrospot mug")])
    first = found[0].identifier
    assert [item.identifier[:3] for item in found] == [first[:3]] * 3
    assert [item.identifier[3] for item in found] == [first[3], first[3] + 1, first[3] + 2]
    assert len(live.history_tokens_of_texts(["red retrospot mug"])) == 5
    consistent(live)
    live.close()


def test_adding_again_changes_nothing(opened: Callable[..., LiveCatalogue]) -> None:
    live = opened()
    (first,) = live.add([MUG])
    live.update("mug", in_stock=False)
    revision = live.revision
    (again,) = opened().add([MUG])
    assert again.number == first.number
    assert not again.in_stock
    assert live.store.revision() == revision
    with pytest.raises(KeyTakenError, match="'mug' exists with other content; update it"):
        live.add([NewItem("mug", title="BLUE MUG")])
    with pytest.raises(KeyTakenError, match="twice"):
        live.add([NewItem("a", title="a"), NewItem("a", title="a")])


def test_of_several_items_all_are_added_or_none(opened: Callable[..., LiveCatalogue]) -> None:
    live = opened()
    live.add([MUG])
    revision = live.revision
    with pytest.raises(KeyTakenError):
        live.add([NewItem("fine", title="bird"), NewItem("mug", title="another")])
    assert live.get("fine") is None
    assert live.store.revision() == revision
    consistent(live)


@pytest.mark.parametrize(
    ("new", "sentence"),
    [
        (NewItem("", title="a"), "cannot be the key"),
        (NewItem("x" * 201, title="a"), "cannot be the key.*1 to 200 characters"),
        (NewItem("a\0b", title="a"), "cannot be the key"),
        (NewItem("\ud800", title="a"), "cannot be the key"),
        (NewItem("a"), "item 'a' has no content.*title, a text"),
        (NewItem("a", title="\0 "), "no content"),
        (NewItem("a", title="a", attributes={"price": float("nan")}), "attributes.price.*finite number"),
        (NewItem("a", title="a", attributes={"": 1.0}), "cannot be a name"),
        (NewItem("a", title="a", categories=("\n",)), "cannot be a name"),
        (NewItem("a", title="a", categories=tuple(map(str, range(65)))), "too many categories"),
    ],
)
def test_bad_items_are_refused(opened: Callable[..., LiveCatalogue], new: NewItem, sentence: str) -> None:
    live = opened()
    with pytest.raises(CatalexError, match=sentence):
        live.add([new])
    assert live.store.revision() == live.revision == 1


def test_strange_texts_are_kept_as_far_as_databases_keep_them(opened: Callable[..., LiveCatalogue]) -> None:
    live = opened()
    title = "mug\0 \ud800 'quoted'; \"x\" --   \U0001f600 \u202e" + "y" * 600
    (item,) = live.add([NewItem("strange", title=title)])
    assert "\0" not in item.title
    assert len(item.title) == 500
    assert list(opened()) == list(live)


def test_without_room_the_sentence_says_so(tmp_path: Path) -> None:
    folder = small_bundle(tmp_path / "narrow", items=60, size=4)
    live = LiveCatalogue.open(Bundle.load(folder), Store.open(str(tmp_path / "store.db")))
    live.add([NewItem(f"n{i}", title=f"mug {i}") for i in range(3)])
    live.add([NewItem("n3", title="mug 3")])
    assert len(live) == 64
    for new in ([NewItem("a", title="a")], [NewItem("b", title="b"), NewItem("c", title="c")]):
        with pytest.raises(CatalexError, match=r"more items than identifiers.*at most 64"):
            live.add(new)
    assert live.remove("n0")
    live.add([NewItem("a", title="a")])
    consistent(live)
    live.close()


# --- changing and removing ----------------------------------------------------------------------------------


def test_changes_reach_filters_and_search(opened: Callable[..., LiveCatalogue]) -> None:
    live = opened()
    live.add([MUG])
    tokens = live.tokens_of(["mug"])

    def chosen(**selection: object) -> list[str]:
        return [i.key for i, _ in live.recommend(tokens, 20, selection=Selection(**selection))]  # type: ignore[arg-type]

    assert chosen(ranges=(("price", 2.0, 3.0),)) == ["mug"]
    assert chosen(ranges=(("price", None, 2.0),)) == []
    assert chosen(ranges=(("colour", None, None),)) == []
    item = live.update("mug", title="Blue cup", attributes={"price": 1.0, "weight": 3}, categories=["Cups"])
    assert item == Item(
        "mug", ITEMS, item.identifier, "Blue cup", item.text, ("Cups",), True, {"price": 1.0, "weight": 3.0}
    )
    assert chosen(ranges=(("price", None, 2.0),), categories=("Cups", "None")) == ["mug"]
    assert chosen(categories=("Mugs",)) == []
    assert [i.key for i in live.search("cup BLUE")] == ["mug"]
    assert live.update("mug", attributes={"price": None}).attributes == {"weight": 3.0}
    assert chosen(ranges=(("price", None, None),)) == []
    live.update("mug", in_stock=False)
    assert "mug" not in chosen(in_stock=True)
    assert live.categories()["Cups"] == 1
    assert live.attribute_ranges() == {"weight": (3.0, 3.0)}
    revision = live.revision
    live.update("mug", in_stock=False)
    assert live.revision == revision  # nothing changed
    with pytest.raises(UnknownItemError, match="no item 'cup'"):
        live.update("cup", in_stock=True)
    consistent(live)


def test_masks_are_those_of_the_obvious_loop(opened: Callable[..., LiveCatalogue]) -> None:
    live = opened()
    live.add(
        [NewItem(f"n{i}", title=f"mug {i}", attributes={"price": i}, in_stock=i % 2 == 0) for i in range(9)]
    )
    live.remove("n4")
    for selection in (
        Selection(in_stock=True),
        Selection(categories=("Mug", "Bag"), in_stock=True),
        Selection(ranges=(("price", 2.0, None), ("price", None, 7.0))),
        Selection(categories=("Shop",), ranges=(("price", 2.0, None),)),
    ):
        expected = np.zeros(live.engine.trie.size, bool)
        expected[[item.number for item in live if selection.allows(item)]] = True
        assert live.allowed(selection).tolist() == expected.tolist()


def test_a_removed_item_frees_its_identifier_and_keeps_its_number(
    opened: Callable[..., LiveCatalogue],
) -> None:
    live = opened()
    (old,) = live.add([MUG])
    history = live.tokens_of(["mug"])
    assert live.remove("mug")
    assert not live.remove("mug")
    assert live.get("mug") is None
    assert live.tokens_of(["mug"]) == history
    found = live.recommend(history, 20, excluded=[])
    assert old.number not in [item.number for item, _ in found]
    (new,) = live.add([NewItem("mug", title=MUG.title, categories=MUG.categories)])
    assert new.identifier == old.identifier
    assert new.number == old.number + 1
    consistent(live)
    consistent(opened())


# --- histories ----------------------------------------------------------------------------------------------


def test_histories_are_read_as_in_training(opened: Callable[..., LiveCatalogue], bundle: Path) -> None:
    live = opened()
    keys = [item.key for item in live][:8]
    recommender = Bundle.load(bundle).recommender
    ranking = recommender.recommend(Histories.from_lists([list(range(8))]), 10)
    best = live.recommend(live.tokens_of(keys), 10)
    assert [item.number for item, _ in best] == ranking.items[0].tolist()
    assert len(live.tokens_of(keys)) == 5 * 3 + 1  # max_history items and the end
    with pytest.raises(UnknownItemError, match="no item 'nope'"):
        live.tokens_of(["nope", *keys])  # also where it would be cut off
    with pytest.raises(CatalexError, match="history is empty"):
        live.tokens_of([])


def test_texts_never_seen_stand_for_items(opened: Callable[..., LiveCatalogue]) -> None:
    live = opened()
    items = list(live)[:3]
    before = live.revision
    read = live.history_tokens_of_texts([item.text for item in items])
    nearest = live.reader.codes(live.reader.vectors([_content(item.text) for item in items]))
    assert read == [*live.vocabulary.tokens(nearest).ravel().tolist(), live.vocabulary.eos]
    mixed = live.history_tokens([items[0].key, NewItem("-", text=items[1].text)])
    assert mixed[:3] == live.tokens_of([items[0].key])[:3]
    assert mixed[3:6] == read[3:6]
    assert live.revision == before
    with pytest.raises(CatalexError, match=r"history, item 1: .*no content"):
        live.history_tokens_of_texts(["a", ""])


def test_neighbours_in_the_tree(opened: Callable[..., LiveCatalogue]) -> None:
    live = opened()
    item = list(live)[7]
    near = live.nearest(item.identifier, 10)
    assert near[0] == item

    def shared(one: Item) -> int:
        same = [a == b for a, b in zip(one.identifier, item.identifier, strict=True)]
        return [*same, False].index(False)

    depths = [shared(one) for one in near]
    assert depths == sorted(depths, reverse=True)
    assert depths == sorted((shared(one) for one in live), reverse=True)[:10]
    first = live.branches(())
    assert sum(first.values()) == len(live)
    assert first[item.identifier[0]] == len(live.under(item.identifier[:1]))
    assert live.branches(item.identifier) == {}


# --- replicas -----------------------------------------------------------------------------------------------


def test_replicas_converge(opened: Callable[..., LiveCatalogue]) -> None:
    one, two = opened(), opened()
    one.add([MUG])
    assert two.get("mug") is None
    assert two.poll()
    assert not two.poll()
    assert two.get("mug") == one.get("mug")
    two.update("mug", in_stock=False)
    two.remove(next(iter(two)).key)
    assert one.poll()
    assert list(one) == list(two)
    assert one.revision == two.revision
    one.remove("mug")
    one.add([NewItem("same place", title=MUG.title, categories=MUG.categories)])  # gone and come in one poll
    two.poll()
    assert list(one) == list(two)
    consistent(one)
    consistent(two)


def test_a_follower_takes_over_within_a_second(opened: Callable[..., LiveCatalogue]) -> None:
    one, two = opened(), opened()
    one.reader.vectors([_content("warm")])
    two.follow()
    one.add([MUG])
    began = time.monotonic()
    while two.get("mug") is None and time.monotonic() - began < 5:
        time.sleep(0.01)
    assert time.monotonic() - began <= 1
    assert two.trouble is None


def test_concurrent_writers_never_give_an_identifier_twice(opened: Callable[..., LiveCatalogue]) -> None:
    replicas = [opened(), opened()]
    problems: list[BaseException] = []

    def write(live: LiveCatalogue, name: str) -> None:
        try:
            for i in range(8):
                live.add([NewItem(f"{name}-{i}-{j}", title="red retrospot mug") for j in range(1 + i % 2)])
                if i % 3 == 2:
                    live.remove(f"{name}-{i - 1}-0")
        except BaseException as error:
            problems.append(error)

    writers = [
        threading.Thread(target=write, args=(live, f"{place}{t}"))
        for place, live in enumerate(replicas)
        for t in range(2)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not problems
    for live in replicas:
        live.poll()
    one, two = replicas
    assert list(one) == list(two)
    assert len(one) == ITEMS + 4 * (12 - 2)
    consistent(one)
    consistent(two)
    fresh = opened()
    assert list(fresh) == list(one)


def test_another_tokenizer_serves_the_same_store(opened: Callable[..., LiveCatalogue], other: Path) -> None:
    one = opened()
    one.add([MUG, NewItem("gone", title="bird")])
    one.remove("gone")
    removed = list(one)[2]
    one.remove(removed.key)
    two = opened(other)
    assert two.generation != one.generation
    assert {i.key for i in two} == {i.key for i in one} | {item.key for item in list(two)[-5:]}
    assert two.get(removed.key) is None
    codes = two.bundle.identifiers.of("shop")
    own = {item.key: item for item in two}
    titles = {item.title: item for item in two}
    for number, title in enumerate(two.bundle.titles):
        if title in titles and title != removed.title:
            assert titles[title].identifier == tuple(codes[number].tolist())
    assert own["mug"].number == one.get("mug").number  # type: ignore[union-attr]
    one.poll()  # the items that only the second bundle knew are placed here too
    assert {i.key for i in two} == {i.key for i in one}
    one.add([NewItem("later", title="clock")])
    two.add([NewItem("latest", title="clock")])
    one.poll()
    two.poll()
    assert {i.key for i in two} == {i.key for i in one}
    one.poll()
    two.poll()
    assert one.revision == two.revision
    consistent(one)
    consistent(two)
    back = opened()
    assert list(back) == list(one)


# --- trouble ------------------------------------------------------------------------------------------------


def test_a_failure_between_choice_and_commit_changes_nothing(
    opened: Callable[..., LiveCatalogue], monkeypatch: pytest.MonkeyPatch
) -> None:
    live = opened()
    before = list(live)

    def fail(*_: object) -> None:
        raise sa.exc.OperationalError("COMMIT", {}, Exception("disk I/O error"))

    with monkeypatch.context() as patch:
        patch.setattr("catalex.serving.store.Writer.finish", fail)
        with pytest.raises(StoreUnavailableError, match=r"cannot be used now \(disk I/O error\)"):
            live.add([MUG])
    assert list(live) == before
    assert list(opened()) == before
    live.add([MUG])
    consistent(live)


@pytest.mark.slow
def test_a_restarted_database_is_met_again(bundle: Path, cluster: Cluster) -> None:
    live = LiveCatalogue.open(Bundle.load(bundle), Store.open(cluster.fresh()))
    live.add([MUG])
    cluster.stop()
    with pytest.raises(StoreUnavailableError) as refused:
        live.add([NewItem("later", title="bird")])
    assert "SELECT" not in str(refused.value)
    assert live.recommend(live.tokens_of(["mug"]), 5)  # reading needs no database
    cluster.start()
    live.add([NewItem("later", title="bird")])
    consistent(live)
    live.close()


@pytest.mark.slow
def test_replicas_follow_each_other_over_a_restart_of_the_database(bundle: Path, cluster: Cluster) -> None:
    url = cluster.fresh()
    one, two = (LiveCatalogue.open(Bundle.load(bundle), Store.open(url)) for _ in range(2))
    two.follow()

    def seconds_until(key: str) -> float:
        began = time.monotonic()
        while two.get(key) is None and time.monotonic() - began < 10:
            time.sleep(0.01)
        return time.monotonic() - began

    one.add([NewItem("before", title="mug")])
    assert seconds_until("before") <= 1
    cluster.stop()
    began = time.monotonic()
    while two.trouble is None and time.monotonic() - began < 10:
        time.sleep(0.01)
    assert two.trouble is not None
    cluster.start()
    one.add([NewItem("after", title="bird")])
    assert seconds_until("after") <= 1
    while two.trouble is not None and time.monotonic() - began < 20:
        time.sleep(0.01)
    assert two.trouble is None
    assert list(one) == list(two)
    one.close()
    two.close()


def _content(text: str) -> ItemContent:
    return ItemContent(text)
