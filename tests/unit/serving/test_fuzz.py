"""Whatever comes in: no status of 500 and more but 503, no leak of the inside, and it goes on answering."""

from __future__ import annotations

import os
import random
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra 'serve'")
pytest.importorskip("sklearn", reason="needs the extra 'text'")

from support.fuzzing import judge, request, send
from support.live import small_bundle
from support.service import Running, running

MANY = int(os.environ.get("CATALEX_FUZZ", "10000"))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    bundle = small_bundle(tmp_path_factory.mktemp("fuzz") / "shop")
    with running(bundle, body_timeout=0.5, head_timeout=0.5, max_body=200_000) as found:
        yield found


def storm(shop: Running, seeds: range) -> Counter[bytes]:
    statuses: Counter[bytes] = Counter()

    def one(seed: int) -> None:
        data = request(random.Random(seed))
        answer = send(shop.port, data, random.Random(-seed))
        wrong = judge(data, answer)
        assert wrong is None, f"seed {seed}: {wrong}; {data[:300]!r} -> {answer[:600]!r}"
        statuses[answer[9:12]] += 1

    with ThreadPoolExecutor(4) as callers:
        list(callers.map(one, seeds))
    return statuses


def test_a_few_hundred_wild_requests(shop: Running) -> None:
    statuses = storm(shop, range(300))
    assert {b"200", b"422", b"404", b"405"} <= set(statuses), statuses
    assert shop.http.get("/ready").status_code == 200


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_thousands_of_wild_requests_leave_no_trace(shop: Running) -> None:
    storm(shop, range(1000, 1000 + MANY // 10))
    before = _resident()
    statuses = storm(shop, range(1000 + MANY // 10, 1000 + MANY))
    print(dict(statuses))
    assert shop.http.get("/ready").status_code == 200
    assert shop.http.post("/v1/recommend", json={"history": ["10002"]}).status_code == 200
    grown = _resident() - before
    assert grown < 100 * 2**20, f"memory grew by {grown / 2**20:.0f} MiB"
    assert len(list(Path("/proc/self/fd").iterdir())) < 200


def test_many_slow_callers_keep_nobody_else_waiting(shop: Running) -> None:
    slow = [socket.create_connection(("127.0.0.1", shop.port), timeout=10) for _ in range(60)]
    for number, connection in enumerate(slow):
        head = b"POST /v1/recommend HTTP/1.1\r\nHost: x\r\n"
        connection.sendall(head if number % 2 else head + b"Content-Length: 100\r\n\r\n{")
    answer = shop.http.post("/v1/recommend", json={"history": ["10002"]})
    assert answer.status_code == 200
    for number, connection in enumerate(slow):
        found = connection.recv(4096)
        assert found == b"" if number % 2 else found.startswith(b"HTTP/1.1 408")
        connection.close()


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
