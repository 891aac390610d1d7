"""The HTTP interface over a small live catalogue, asked as a client would ask it."""

from __future__ import annotations

import base64
import io
import math
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra 'serve'")
pytest.importorskip("sklearn", reason="needs the extra 'text'")

from catalex.client import Client, ServiceError
from catalex.features import ItemContent
from catalex.serving.connection import StoreUnavailableError
from catalex.serving.service import Service
from support.live import ITEMS, small_bundle
from support.service import Running, running


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(small_bundle(tmp_path_factory.mktemp("app") / "shop"), max_k=20, max_items=8) as found:
        yield found


@pytest.fixture(scope="module")
def client(shop: Running) -> Iterator[Client]:
    with Client(shop.address) as found:
        yield found


@pytest.fixture(scope="module")
def keys(client: Client) -> list[str]:
    return [item["key"] for item in client.search("", 40)]


def message(answer: Any, status: int) -> str:
    assert answer.status_code == status, answer.text
    found = answer.json()["error"]
    assert set(found) == {"code", "message", "request_id"}
    assert found["message"].endswith((".", "?"))
    return str(found["message"])


# --- recommending -------------------------------------------------------------------------------------------


def test_recommendations_are_those_of_the_catalogue(shop: Running, client: Client, keys: list[str]) -> None:
    live = shop.service.present.catalogue
    found = client.recommend(keys[:3], 7)
    expected = live.recommend(live.tokens_of(keys[:3]), 7)
    assert [item["key"] for item in found] == [item.key for item, _ in expected]
    assert [item["score"] for item in found] == pytest.approx([score for _, score in expected], abs=1e-4)
    for item in found:
        assert item["probability"] == pytest.approx(math.exp(item["score"]))
        assert item["path"] is None


def test_the_steps_of_a_path_multiply_to_the_probability(client: Client, keys: list[str]) -> None:
    for item in client.recommend(keys[:3], 5, explain=True):
        assert [step["code"] for step in item["path"]] == item["identifier"]
        product = math.prod(step["probability"] for step in item["path"])
        assert product == pytest.approx(item["probability"], rel=1e-3)


def test_histories_may_hold_texts_that_were_never_seen(
    shop: Running, client: Client, keys: list[str]
) -> None:
    before = shop.service.present.catalogue.revision
    assert len(client.recommend([keys[0], {"text": "a blue ceramic cup"}], 5)) == 5
    assert shop.service.present.catalogue.revision == before


def test_filters_hold_alone_and_together(client: Client, keys: list[str]) -> None:
    client.update(keys[5], attributes={"price": 3.0})
    client.update(keys[6], attributes={"price": 8.0}, in_stock=False)
    client.update(keys[7], attributes={"price": 5.0})
    history = keys[:2]

    def names(**filters: Any) -> set[str]:
        return {item["key"] for item in client.recommend(history, 20, **filters)}

    assert names(ranges={"price": (None, None)}) == set(keys[5:8])
    assert names(ranges={"price": (3.0, 5.0)}) == {keys[5], keys[7]}
    assert names(ranges={"price": (4, None)}, in_stock=True) == {keys[7]}
    assert names(ranges={"price": (4, None)}, exclude=[keys[7], "no such item"]) == {keys[6]}
    category = client.get(keys[9])["categories"][-1]
    chosen = names(categories=[category])
    assert keys[9] in chosen
    assert all(category in client.get(key)["categories"] for key in chosen)
    assert names(categories=["no such category"]) == set()


def test_batches_and_many_callers_get_what_single_requests_get(client: Client, keys: list[str]) -> None:
    requests = [
        {
            "history": keys[i : i + 1 + i % 4],
            "k": 3 + i % 3,
            "exclude": keys[:i],
            "filter": {"in_stock": bool(i % 2)} if i % 3 else {"categories": ["Shop"]},
        }
        for i in range(8)
    ]

    def plain(answer: list[dict[str, Any]]) -> list[tuple[str, float]]:
        return [(item["key"], round(item["score"], 3)) for item in answer]

    single = [plain(client.recommend_batch([request])[0]) for request in requests]
    assert [plain(answer) for answer in client.recommend_batch(requests)] == single
    with ThreadPoolExecutor(8) as callers:
        found = callers.map(lambda request: plain(client.recommend_batch([request])[0]), requests * 4)
        assert list(found) == single * 4
    assert all(len(answer) == request["k"] for answer, request in zip(single, requests, strict=True))


def test_a_share_of_the_list_is_kept_for_newcomers(tmp_path: Path) -> None:
    with running(small_bundle(tmp_path / "shop"), newcomers=0.2) as found, Client(found.address) as client:
        keys = [item["key"] for item in client.search("", 5)]
        new = [{"key": f"new-{i}", "title": f"PURPLE ZEBRA LAMP {i}"} for i in range(4)]
        client.add(new)
        names = [item["key"] for item in client.recommend(keys[:2], 10)]
        assert sum(name.startswith("new-") for name in names) >= 2
        assert len(set(names)) == 10
        listed = client.recommend(keys[:2], 10, explain=True)
        marked = [item for item in listed if item["newcomer"]]
        assert {item["key"] for item in marked} <= {one["key"] for one in new}
        assert [item["newcomer"] for item in listed] == [False] * (10 - len(marked)) + [True] * len(marked)
        before = listed[9 - len(marked)]
        assert {item["score"] for item in marked} == {before["score"]}, "that of the item before"
        own = [math.prod(step["probability"] for step in item["path"]) for item in listed]
        assert own[0] == pytest.approx(listed[0]["probability"], rel=1e-3)
        assert all(value < before["probability"] for value in own[10 - len(marked) :]), "the model's own"
        assert not any(item["newcomer"] for item in client.recommend([keys[0]], 4)), "no place in so few"
        assert "newcomer" in found.http.get("/openapi.json").text
        fewer = [item["key"] for item in client.recommend(keys[:2], 10, exclude=["new-0", "new-1", "new-2"])]
        assert {name for name in fewer if name.startswith("new-")} == {"new-3"}


# --- similar, tokenize, paths -------------------------------------------------------------------------------


def test_similar_items_are_the_nearest_by_the_vectors_of_their_identifiers(
    shop: Running, client: Client, keys: list[str]
) -> None:
    live = shop.service.present.catalogue
    items = list(live)
    vectors = live.reader.tokenizer.decode(np.array([item.identifier for item in items], np.int32))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    own = next(i for i, item in enumerate(items) if item.key == keys[4])
    cosines = vectors @ vectors[own]
    found = client.similar(keys[4], k=6)
    assert keys[4] not in [item["key"] for item in found]
    expected = np.sort(np.delete(cosines, own))[::-1][:6]
    assert [item["cosine"] for item in found] == pytest.approx(expected.tolist(), abs=1e-5)


def test_the_nearest_to_a_text_are_those_of_its_own_vector(shop: Running, client: Client) -> None:
    live = shop.service.present.catalogue
    vectors = live.reader.tokenizer.decode(np.array([item.identifier for item in live], np.int32))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    (vector,) = live.reader.vectors([ItemContent("red cake stand")])
    expected = np.sort(vectors @ (vector / np.linalg.norm(vector)))[::-1][:5]
    found = client.similar(text="red cake stand", k=5)
    assert [item["cosine"] for item in found] == pytest.approx(expected.tolist(), abs=1e-5)


def test_tokenizing_stores_nothing_and_tells_what_adding_then_gives(shop: Running, client: Client) -> None:
    text = "PINK POLKADOT TEAPOT"
    revision = shop.service.present.catalogue.revision
    found = client.tokenize(text, k=3)
    assert shop.service.present.catalogue.revision == revision
    assert [level["code"] for level in found["levels"]] == found["identifier"]
    assert len(found["nearest"]) == 3
    (added,) = client.add([{"key": "teapot", "text": text}])
    assert added["identifier"] == found["identifier"]
    assert client.tokenize(text)["identifier"] != added["identifier"], "it is taken now"
    assert client.remove("teapot")


def test_a_path_counts_who_is_below_and_beside(shop: Running, keys: list[str]) -> None:
    answer = shop.http.get("/v1/path", params={"key": keys[3]}).json()
    own = answer["item"]["identifier"]
    items = list(shop.service.present.catalogue)
    for depth, level in enumerate(answer["levels"]):
        beside = [item for item in items if list(item.identifier[:depth]) == own[:depth]]
        below = [item for item in beside if item.identifier[depth] == own[depth]]
        assert level["items"] == len(below)
        counts = np.bincount([item.identifier[depth] for item in beside])
        assert level["used"] == [[code, int(n)] for code, n in enumerate(counts) if n]
        for item in level["neighbours"]:
            assert item["identifier"][:depth] == own[:depth]
            assert item["identifier"][depth] != own[depth]
        assert len(level["neighbours"]) == min(6, len(beside) - len(below))


def test_the_health_counts_add_up(shop: Running) -> None:
    found = shop.http.get("/v1/health").json()
    assert all(sum(level["counts"]) == found["items"] for level in found["levels"])
    assert found["depths"][-1] == {
        "depth": 3, "prefixes": found["items"], "items_per_prefix": 1.0, "largest": 1
    }  # fmt: skip
    first = {item.identifier[0] for item in shop.service.present.catalogue}
    assert found["depths"][0]["prefixes"] == len(first) == found["levels"][0]["used"]


# --- items --------------------------------------------------------------------------------------------------


def test_an_items_life(client: Client, keys: list[str]) -> None:
    before = {item["key"]: item["identifier"] for item in client.search("", 200)}
    new = {
        "key": "shelf/1 ü",
        "title": "PURPLE ZEBRA LAMP",
        "category": "Lamps",
        "attributes": {"price": 9.5},
    }
    (added,) = client.add([new])
    assert added["categories"] == ["Lamps"]
    assert added["identifier"] not in before.values()
    assert client.add([new])[0] == added, "the same again is no error"
    assert client.get("shelf/1 ü")["text"].startswith("PURPLE ZEBRA LAMP")
    assert [item["key"] for item in client.search("zebra lamp")] == ["shelf/1 ü"]
    assert {i["key"] for i in client.recommend(keys[:2], categories=["Lamps"])} == {"shelf/1 ü"}
    assert client.recommend(["shelf/1 ü"], 3)
    changed = client.update("shelf/1 ü", in_stock=False, attributes={"price": None, "weight": 2.0})
    assert (changed["in_stock"], changed["attributes"]) == (False, {"weight": 2.0})
    assert changed["identifier"] == added["identifier"]
    assert client.recommend(keys[:2], categories=["Lamps"], in_stock=True) == []
    assert client.remove("shelf/1 ü")
    assert not client.remove("shelf/1 ü")
    assert client.recommend(keys[:2], categories=["Lamps"]) == []
    assert {item["key"]: item["identifier"] for item in client.search("", 200)} == before


def test_a_picture_is_kept_and_shown(shop: Running, client: Client) -> None:
    image_module = pytest.importorskip("PIL.Image", reason="needs the extra 'images'")
    stream = io.BytesIO()
    image_module.new("RGB", (30, 20), "teal").save(stream, "PNG")
    (added,) = client.add([{"key": "pic", "title": "TEAL THING", "image": stream.getvalue()}])
    assert added["has_image"]
    shown = shop.http.get("/v1/picture", params={"key": "pic"})
    assert shown.headers["content-type"] == "image/png"
    assert shown.content == stream.getvalue()
    client.remove("pic")


def test_refusals_name_the_place_and_the_value(shop: Running, keys: list[str]) -> None:
    def refused(body: Any, status: int, path: str = "/v1/recommend") -> str:
        return message(shop.post(path, body), status)

    known = keys[0]
    assert "no item 'nope'" in refused({"history": ["nope"]}, 404)
    assert "history" in refused({"history": []}, 422)
    assert "k: the list is too long (found 21; allowed: 1 to 20)" in refused(
        {"history": [known], "k": 21}, 422
    )
    assert "found '2'" in refused({"history": [known], "k": "2"}, 422)
    assert "colour" in refused({"history": [known], "filter": {"colour": 1}}, 422)
    assert "NUL" in refused({"items": [{"key": "a\0", "title": "x"}]}, 422, "/v1/items")
    assert "neither text nor image" in refused({"items": [{"key": "a"}]}, 422, "/v1/items")
    assert "too many" in refused(
        {"items": [{"key": str(i), "title": "x"} for i in range(9)]}, 413, "/v1/items"
    )
    assert "not base64" in refused({"text": "a", "image": "&"}, 422, "/v1/tokenize")
    assert "either 'item' or 'text'" in refused({}, 422, "/v1/similar")
    shop.post("/v1/items", {"items": [{"key": "twice", "title": "first"}]})
    again = shop.post("/v1/items", {"items": [{"key": "twice", "title": "second"}]})
    assert "other content" in message(again, 409)
    shop.http.delete("/v1/items/twice")


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 422),
        (b"{", 422),
        (b"\xff\xfe", 422),
        (b'"\xe4"', 400),
        (b"[" * 100_000, 400),
        (b'{"history": ["\\ud800"]}', 422),
        (b'{"history": ["a"], "k": ' + b"9" * 5000 + b"}", 400),
        (b'{"history": ["a"], "filter": {"ranges": {"p": {"min": NaN}}}}', 422),
        (b'{"history": ["a"], "filter": {"ranges": {"p": {"min": 1e999}}}}', 422),
        (b"null", 422),
    ],
)
def test_odd_bodies_get_a_sentence(shop: Running, content: bytes, status: int) -> None:
    answer = shop.http.post("/v1/recommend", content=content, headers={"Content-Type": "application/json"})
    assert message(answer, answer.status_code)
    assert answer.status_code in (400, 422)
    assert answer.status_code == status


def test_paths_and_methods_that_do_not_exist(shop: Running) -> None:
    assert "nothing at this path" in message(shop.http.get("/v2/recommend"), 404)
    assert "takes POST only" in message(shop.http.get("/v1/recommend"), 405)
    for path, allowed in (("/v1/items", "GET, POST"), ("/v1/items/a/b", "DELETE, GET, PATCH"), ("/", "GET")):
        answer = shop.http.put(path)
        assert answer.headers["allow"] == allowed
        assert f"takes {allowed} only" in message(answer, 405)
    assert "JSON" in message(shop.http.post("/v1/recommend", content=b"x"), 422)
    for path in ("/page/../app.py", "/page/%2e%2e/app.py", "/page//etc/passwd", "/page/"):
        assert shop.http.get(path).status_code == 404, path


def test_a_failure_inside_tells_no_reason(shop: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("/srv/secret/path")

    monkeypatch.setattr(Service, "recommend", fail)
    answer = shop.post("/v1/recommend", {"history": ["a"]})
    assert "log has the reason" in message(answer, 500)
    assert "secret" not in answer.text


# --- about the service --------------------------------------------------------------------------------------


def test_readiness_tells_of_a_store_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(small_bundle(tmp_path / "shop"), poll=0.02, stale=0.6) as found:
        catalogue = found.service.present.catalogue
        key = catalogue.search("", 1)[0].key
        assert found.http.get("/ready").json()["store"] == "answers"

        def away(*_: object, **__: object) -> int:
            raise StoreUnavailableError("postgresql://shop: gone")

        with monkeypatch.context() as patch:
            patch.setattr(catalogue.store, "revision", away)
            wait_for(lambda: found.http.get("/ready").json().get("store") == "away")
            assert found.post("/v1/recommend", {"history": [key]}).status_code == 200
            wait_for(lambda: found.http.get("/ready").status_code == 503)
            assert "has not answered" in message(found.http.get("/ready"), 503)
            assert "catalex_ready 0.0" in found.http.get("/metrics").text
            assert found.http.get("/health").status_code == 200, "restarting it would not help"
            assert found.post("/v1/recommend", {"history": [key]}).status_code == 200
        wait_for(lambda: found.http.get("/ready").status_code == 200)
        assert found.http.get("/ready").json()["store"] == "answers"
        assert "catalex_store_silence_seconds 0.0" in found.http.get("/metrics").text


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_readiness_and_metrics(shop: Running, client: Client, keys: list[str]) -> None:
    assert shop.http.get("/ready").json()["status"] == "ready"
    shop.service.ready = False
    assert shop.http.get("/ready").status_code == 503
    assert shop.http.get("/health").status_code == 200, "it is alive while it ends"
    shop.service.ready = True
    client.recommend(keys[:1])
    text = shop.http.get("/metrics").text
    assert 'catalex_requests_total{route="/v1/recommend",status="200"}' in text
    assert f"catalex_items {float(ITEMS)}" in text
    named = re.sub(r" \S+$", "", text, flags=re.MULTILINE)  # a key is a short number, which a time may hold
    assert 'status="200"}' in named
    assert keys[0] not in named


def test_the_openapi_document_has_an_example_for_every_body_and_all_errors(shop: Running) -> None:
    found = shop.http.get("/openapi.json").json()
    schemas = found["components"]["schemas"]
    bodies = 0
    for path, methods in found["paths"].items():
        for operation in methods.values():
            assert {"401", "422", "429", "503"} <= set(operation["responses"]), path
            if "requestBody" in operation:
                reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
                assert schemas[reference.rpartition("/")[2]]["examples"], path
                bodies += 1
    assert bodies >= 7


def test_the_page_and_its_parts_are_served_and_ask_no_other_server(shop: Running) -> None:
    page = shop.http.get("/")
    assert "text/html" in page.headers["content-type"]
    folder = Path(__file__).resolve().parents[3] / "src/catalex/serving/page"
    parts = sorted(p.name for p in folder.iterdir())
    assert {"index.html", "style.css", "main.js"} <= set(parts)
    for name in parts:
        part = shop.http.get(f"/page/{name}")
        assert part.status_code == 200
        assert "https://" not in part.text
        assert "http://" not in part.text.replace("http://www.w3.org/2000/svg", "")
    assert "innerHTML" not in "".join(p.read_text() for p in folder.glob("*.js"))


def test_other_origins_are_not_let_in(shop: Running, tmp_path: Path) -> None:
    ask = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
    answer = shop.http.options("/v1/recommend", headers=ask)
    assert "access-control-allow-origin" not in answer.headers
    with running(small_bundle(tmp_path / "shop"), cors_origins=("https://shop.example",)) as open_one:
        answer = open_one.http.options("/v1/recommend", headers=ask)
        assert answer.headers["access-control-allow-origin"] == "https://shop.example"


def test_the_client_says_what_the_service_says(client: Client) -> None:
    with pytest.raises(ServiceError, match="no item 'nope'") as caught:
        client.get("nope")
    assert (caught.value.status, caught.value.code) == (404, "unknown_item")
    assert len(caught.value.request_id) == 32
    with Client("http://127.0.0.1:9") as nobody, pytest.raises(ServiceError, match="does not answer"):
        nobody.about()


def test_a_body_with_a_picture_in_a_data_url(client: Client) -> None:
    with pytest.raises(ServiceError, match="not a readable picture"):
        client.add([{"key": "x", "title": "y", "image": base64.b64decode("AAAA")}])
