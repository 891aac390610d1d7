"""Swapping models: no request fails, no change is lost, and back again."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

pytest.importorskip("fastapi", reason="needs the extra 'serve'")
pytest.importorskip("sklearn", reason="needs the extra 'text'")

from catalex.client import Client, ServiceError
from support.live import small_bundle
from support.service import Running, running

ADMIN = "a" * 20


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    small_bundle(folder / "first", scratch=folder / ".parts-1")
    small_bundle(folder / "second", seed=1, items=125, scratch=folder / ".parts-2")
    return folder


@pytest.fixture
def shop(bundles: Path, tmp_path: Path) -> Iterator[Running]:
    models = tmp_path / "models"
    shutil.copytree(bundles, models)
    with running(models / "first", [(ADMIN, "admin")], models=models) as found:
        found.http.headers["X-API-Key"] = ADMIN
        yield found


@pytest.fixture
def client(shop: Running) -> Iterator[Client]:
    with Client(shop.address, ADMIN) as found:
        yield found


def test_load_compare_switch_and_back(shop: Running, client: Client) -> None:
    keys = [item["key"] for item in client.search("", 30)]
    for start in range(10):
        client.recommend(keys[start : start + 3])
    (added,) = client.add([{"key": "live", "title": "PURPLE ZEBRA LAMP", "attributes": {"price": 2.0}}])
    client.remove(keys[20])
    client.update(keys[21], in_stock=False)

    assert shop.http.get("/v1/models").json()["available"] == ["first", "second"]
    assert shop.post("/v1/models/load", {"name": "second"}).json()["next"] == "second"
    found = shop.http.post("/v1/models/compare").json()
    assert found["histories"] == 10
    assert 0 <= found["overlap"] < 1, "another seed recommends other items"
    assert 0 < found["moved"] <= 1
    assert found["items_of_next_only"] == 5
    assert found["items_of_present_only"] == 0, "what was added live was carried over"
    client.add([{"key": "late", "title": "GREEN GIRAFFE LAMP"}])

    assert shop.http.post("/v1/models/switch").json()["present"] == "second"
    assert client.about()["model"] == "second"
    live = client.get("live")
    assert (live["title"], live["attributes"]) == ("PURPLE ZEBRA LAMP", {"price": 2.0})
    assert client.get("late")["title"] == "GREEN GIRAFFE LAMP"
    assert not client.get(keys[21])["in_stock"]
    with pytest.raises(ServiceError, match="no item"):
        client.get(keys[20])
    client.add([{"key": "after", "title": "BLUE BADGER LAMP"}])

    assert shop.http.post("/v1/models/rollback").json()["present"] == "first"
    assert client.get("live") == {**added, "text": client.get("live")["text"]}, "its identifier as before"
    assert client.get("after")["title"] == "BLUE BADGER LAMP"


def test_no_request_fails_during_a_swap(shop: Running, client: Client) -> None:
    keys = [item["key"] for item in client.search("", 30)]
    over, statuses, models = threading.Event(), [], set()

    def ask(number: int) -> None:
        with httpx.Client(base_url=shop.address, headers={"X-API-Key": ADMIN}, trust_env=False) as http:
            count = 0
            while not over.is_set():
                count += 1
                if number == 0 and count % 5 == 0:
                    item = {"key": f"during-{count}", "title": f"THING NUMBER {count}"}
                    answer = http.post("/v1/items", json={"items": [item]}, timeout=20)
                else:
                    answer = http.post("/v1/recommend", json={"history": keys[count % 20 :][:3]}, timeout=20)
                    models.add(answer.json().get("model"))
                statuses.append(answer.status_code)

    callers = [threading.Thread(target=ask, args=(number,)) for number in range(3)]
    for caller in callers:
        caller.start()
    try:
        assert shop.post("/v1/models/load", {"name": "second"}).status_code == 202
        for action in ("switch", "rollback", "switch"):
            time.sleep(0.4)
            assert shop.http.post(f"/v1/models/{action}").status_code == 200
        time.sleep(0.4)
    finally:
        over.set()
        for caller in callers:
            caller.join()
    assert set(statuses) <= {200, 201}, set(statuses)
    assert len(statuses) > 20
    assert models == {"first", "second"}
    added = statuses.count(201)
    assert len(client.search("thing number", 200)) == added, "no added item was lost on the way"


@pytest.mark.parametrize(
    ("action", "body", "sentence"),
    [
        ("load", {"name": "third"}, "no such bundle"),
        ("load", {"name": "first"}, "answers already"),
        ("load", {"name": "../first"}, "name: string should match"),
        ("load", {"name": "/etc"}, "name: string should match"),
        ("compare", None, "no model is loaded"),
        ("switch", None, "no model is loaded"),
        ("rollback", None, "no model was switched from"),
    ],
)
def test_refusals(shop: Running, action: str, body: object, sentence: str) -> None:
    answer = shop.post(f"/v1/models/{action}", body)
    assert answer.status_code == 422
    assert sentence in answer.json()["error"]["message"].lower()
    assert str(shop.service.options.models) not in answer.text


def test_a_damaged_bundle_is_refused_and_nothing_changes(shop: Running, client: Client) -> None:
    models = shop.service.options.models
    assert models is not None
    (models / "second" / "recipe.json").write_text("{}")
    answer = shop.post("/v1/models/load", {"name": "second"})
    assert answer.status_code == 422
    assert "differs from the bundle's manifest" in answer.json()["error"]["message"]
    assert str(models) not in answer.text
    assert client.about()["model"] == "first"
