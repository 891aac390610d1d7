"""The front door: each guard refuses what it is there for. Every test fails when its guard is taken away."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="needs the extra 'serve'")
pytest.importorskip("httpx", reason="needs the extra 'serve'")

import httpx
from starlette.types import Receive, Scope, Send

from catalex.serving.app import role_of
from catalex.serving.front import FrontDoor
from catalex.serving.keys import Keys
from catalex.serving.metrics import Metrics
from catalex.serving.settings import ServeOptions
from support.service import listening

READ, WRITE, ADMIN = "r" * 20, "w" * 20, "a" * 20
KEYS = Keys([(READ, "read"), (WRITE, "write"), (ADMIN, "admin")])


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Tells how long the body was; ``/v1/slow`` takes its time, ``/v1/broken`` breaks."""
    body = (await receive()).get("body", b"")
    if scope["path"] == "/v1/slow":
        await asyncio.sleep(0.6)
    if scope["path"] == "/v1/broken":
        raise RuntimeError("the reason with a secret")
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"bytes": len(body)}).encode()})


@contextmanager
def door(keys: Keys | None = None, **options: Any) -> Iterator[tuple[httpx.Client, int, FrontDoor]]:
    chosen = ServeOptions(**options)
    front = FrontDoor(echo, options=chosen, keys=keys or Keys(), metrics=Metrics(), role_of=role_of)
    with (
        listening(front, chosen) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10, trust_env=False) as http,
    ):
        yield http, port, front


def error(answer: httpx.Response) -> str:
    found = answer.json()["error"]
    assert found["request_id"] == answer.headers["x-request-id"]
    assert found["message"].endswith(".")
    return str(found["message"])


# --- keys ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "statuses"),
    [
        ("POST", "/v1/recommend", {None: 401, "wrong": 401, READ: 200, WRITE: 200, ADMIN: 200}),
        ("GET", "/v1/items/a", {None: 401, READ: 200}),
        ("POST", "/v1/items", {None: 401, READ: 403, WRITE: 200}),
        ("PATCH", "/v1/items/a", {READ: 403, WRITE: 200}),
        ("DELETE", "/v1/items/a/b", {READ: 403, WRITE: 200}),
        ("POST", "/v1/models/switch", {None: 401, READ: 403, WRITE: 403, ADMIN: 200}),
        ("GET", "/metrics", {None: 401, READ: 200}),
        ("GET", "/health", {None: 200}),
        ("GET", "/", {None: 200}),
    ],
)
def test_who_may_do_what(method: str, path: str, statuses: dict[str | None, int]) -> None:
    with door(KEYS) as (http, _, _):
        for key, status in statuses.items():
            headers = {} if key is None else {"X-API-Key": key}
            answer = http.request(method, path, headers=headers)
            assert answer.status_code == status, key
            if key in (READ, WRITE, ADMIN):
                bearer = http.request(method, path, headers={"Authorization": f"Bearer {key}"})
                assert bearer.status_code == status
            if status == 401:
                assert answer.headers["www-authenticate"] == "Bearer"
                assert "key" in error(answer)


def test_without_keys_everyone_may_write_and_nobody_may_swap() -> None:
    with door() as (http, _, _):
        assert http.post("/v1/items").status_code == 200
        answer = http.post("/v1/models/switch")
        assert answer.status_code == 403
        assert "started with API keys" in error(answer)


# --- bodies -------------------------------------------------------------------------------------------------


def test_a_large_body_is_refused_announced_or_not() -> None:
    with door(max_body=1000) as (http, _, front):
        assert http.post("/v1/recommend", content=b"x" * 1000).json() == {"bytes": 1000}
        announced = http.post("/v1/recommend", content=b"x" * 1001)
        assert announced.status_code == 413
        assert "1000 bytes" in error(announced)
        in_pieces = http.post("/v1/recommend", content=iter([b"x" * 600] * 2))
        assert in_pieces.status_code == 413
        assert front.metrics.refused.labels("size")._value.get() == 2


def test_an_announced_large_body_is_not_waited_for() -> None:
    with door(max_body=1000) as (_, port, _), socket.create_connection(("127.0.0.1", port), timeout=3) as raw:
        raw.sendall(b"POST /v1/recommend HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n")
        assert raw.recv(4096).startswith(b"HTTP/1.1 413")


def test_a_compressed_body_is_refused() -> None:
    with door() as (http, _, _):
        answer = http.post("/v1/recommend", content=b"\x1f\x8b", headers={"Content-Encoding": "gzip"})
        assert answer.status_code == 415
        assert "ompressed" in error(answer)


def test_a_slow_body_is_refused_and_takes_no_place_in_the_queue() -> None:
    with (
        door(body_timeout=0.4, max_queue=1) as (http, port, _),
        socket.create_connection(("127.0.0.1", port), timeout=5) as slow,
    ):
        slow.sendall(b"POST /v1/recommend HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
        time.sleep(0.1)
        assert http.post("/v1/recommend", content=b"y").status_code == 200
        began = time.monotonic()
        assert slow.recv(4096).startswith(b"HTTP/1.1 408")
        assert time.monotonic() - began < 2


def test_a_slow_head_ends_the_connection_also_a_second_one() -> None:
    with door(head_timeout=0.3) as (_, port, _):
        for before in (b"", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", port), timeout=5) as slow:
                if before:
                    slow.sendall(before)
                    time.sleep(0.1)
                    assert b" 200 " in slow.recv(4096)
                slow.sendall(b"GET /health HT")
                began = time.monotonic()
                assert slow.recv(4096) == b""
                assert 0.1 < time.monotonic() - began < 2


def test_connections_are_counted() -> None:
    with door(max_connections=2) as (_, port, _):
        held = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(3)]
        assert held[2].recv(4096).startswith(b"HTTP/1.1 503")
        held[0].sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert held[0].recv(4096).startswith(b"HTTP/1.1 200")
        for connection in held:
            connection.close()


# --- queue and time -----------------------------------------------------------------------------------------


def test_a_full_queue_answers_429_and_says_when_to_come_again() -> None:
    async def ask(port: int) -> list[httpx.Response]:
        address = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=address, trust_env=False, timeout=10) as http:
            answers = await asyncio.gather(*(http.post("/v1/slow") for _ in range(5)))
            return [*answers, await http.post("/v1/slow")]

    with door(max_queue=3) as (http, port, front):
        found = asyncio.run(ask(port))
        assert sorted(a.status_code for a in found[:5]) == [200, 200, 200, 429, 429]
        refused = next(a for a in found if a.status_code == 429)
        assert refused.headers["retry-after"] == "1"
        assert "again" in error(refused)
        assert found[5].status_code == 200, "places are given back"
        assert front.at_work == 0
        assert http.get("/health").status_code == 200


def test_an_answer_that_takes_too_long_ends_as_503() -> None:
    with door(timeout=0.2) as (http, _, front):
        began = time.monotonic()
        answer = http.post("/v1/slow")
        assert time.monotonic() - began < 0.5
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert "0.2 seconds" in error(answer)
        assert front.at_work == 0


def test_answers_do_not_wait_for_an_acknowledgement() -> None:
    with door() as (http, _, _):
        http.post("/v1/recommend")
        began = time.monotonic()
        for _ in range(20):
            http.post("/v1/recommend")
        assert time.monotonic() - began < 20 * 0.03, "Nagle's algorithm takes 40 ms an answer"


# --- ids, logs, leaks ---------------------------------------------------------------------------------------


def test_requests_keep_good_ids_and_get_new_ones_for_bad() -> None:
    with door() as (http, _, _):
        kept = http.get("/health", headers={"X-Request-ID": "abc-1.2_3"})
        assert kept.headers["x-request-id"] == "abc-1.2_3"
        for bad in ("a b", "x" * 65, "ä".encode("latin-1"), "${jndi}"):
            found = http.get("/health", headers={"X-Request-ID": bad}).headers["x-request-id"]
            assert len(found) == 32
            assert found.isalnum()


def test_the_log_names_the_request_and_nothing_of_its_content(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("catalex.serving").propagate = True
    with caplog.at_level(logging.INFO, "catalex.serving"), door() as (http, _, _):
        found = http.post("/v1/items/private-item?q=private", content=b"private")
    assert found.headers["x-request-id"] in caplog.text
    assert "private" not in caplog.text


def test_a_failure_tells_the_caller_nothing(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("catalex.serving").propagate = True
    with door() as (http, _, _):
        answer = http.post("/v1/broken")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "secret" in caplog.text, "the log has the reason"
    assert error(answer)


def test_browsers_are_told_to_load_from_here_only() -> None:
    with door() as (http, _, _):
        headers = http.get("/").headers
        assert headers["content-security-policy"].startswith("default-src 'self'")
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers
