"""Requests that nobody sane would send: wrong types, huge, deep, badly encoded, half sent."""

from __future__ import annotations

import base64
import json
import random
import socket
import struct
import zlib
from typing import Any

PATHS = (
    "/v1/recommend", "/v1/recommend/batch", "/v1/similar", "/v1/tokenize", "/v1/items", "/v1/items/a",
    "/v1/models/load", "/v1/models/switch", "/v1/path?key=a", "/v1/picture?key=a", "/v1/about", "/v1/health",
    "/v1/items?search=a&limit=5", "/health", "/metrics", "/openapi.json", "/", "/page/main.js",
)  # fmt: skip
METHODS = ("GET", "POST", "PATCH", "DELETE", "PUT", "HEAD", "OPTIONS")
NAMES = (
    "history", "k", "exclude", "filter", "explain", "requests", "item", "text", "image", "items", "key",
    "title", "categories", "category", "attributes", "in_stock", "ranges", "min", "max", "name", "brand",
)  # fmt: skip
TEXTS = (
    "", " ", "a", "22423", "\x00", "\ud800", "é" * 50, "🦓", "../../etc/passwd", "'; DROP TABLE items;--",
    "<script>alert(1)</script>", "%s%n%x", "${jndi:ldap://x}", "A" * 5000, "\u202e\u0000\uffff", "NaN",
)  # fmt: skip
NUMBERS = (0, 1, -1, 5, 2**31, 2**63, 10**30, 1.5, -0.0, 1e308, float("nan"), float("inf"))

ODD = (
    "/v1/items/%00%00", "/v1/items/%ff%fe", "/v1/items/" + "a" * 3000, "/page/..%2f..%2fapp.py", "*",
    "/v1/items?limit=1e9", "/v1/items?search=%00%ff", "/v1//items", "/%2e%2e/%2e%2e/etc/passwd",
    "http://other.example/v1/about", "/v1/path?key=%E0%A4%A", "/v1/items?limit=5&limit=x",
)  # fmt: skip


def value(r: random.Random, depth: int = 0) -> Any:
    """Any JSON value, sometimes much too long or deep."""
    kind = r.randrange(10)
    if kind < 3 or depth > 4:
        return r.choice(TEXTS)
    if kind < 5:
        return r.choice(NUMBERS)
    if kind == 5:
        return r.choice((None, True, False))
    if kind == 6:
        return [
            value(r, depth + 1)
            for _ in range(r.choice((0, 1, 2, 5, 200)) // (1 + 9 * depth) + r.randrange(2))
        ]
    if kind == 7:
        return {r.choice((*NAMES, *TEXTS[:6])): value(r, depth + 1) for _ in range(r.randrange(5))}
    if kind == 8:
        return base64.b64encode(r.choice((bomb(30_000), b"\x89PNG", r.randbytes(50), b""))).decode()
    return likely(r)


def likely(r: random.Random) -> dict[str, Any]:
    """A request that is nearly right."""
    item = {"key": r.choice(TEXTS), "title": r.choice(TEXTS)}
    body: dict[str, Any] = r.choice(
        (
            {
                "history": [
                    r.choice(("22423", "10002", {"text": r.choice(TEXTS)})) for _ in range(r.randrange(4))
                ]
            },
            {"requests": [{"history": ["10002"]}] * r.choice((0, 1, 3, 500))},
            {"item": "10002", "k": r.choice(NUMBERS)},
            {"text": r.choice(TEXTS), "image": base64.b64encode(bomb(20_000)).decode()},
            {"items": [item] * r.choice((1, 2))},
            {"in_stock": r.choice((True, 1, "yes")), "attributes": {r.choice(TEXTS): r.choice(NUMBERS)}},
        )
    )
    if r.random() < 0.5:
        body[r.choice(NAMES)] = value(r, 3)
    return body


def bomb(side: int) -> bytes:
    """A PNG of side x side black pixels in some kilobytes, as far as it goes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", ZEROS) + chunk(b"IEND", b"")


ZEROS = zlib.compress(bytes(3_000_000), 9)


def body(r: random.Random) -> bytes:
    """The bytes of a body."""
    kind = r.randrange(12)
    if kind < 6:
        return json.dumps(likely(r)).encode()
    if kind < 9:
        return json.dumps(value(r)).encode()
    if kind == 9:
        depth = r.choice((10, 1000, 100_000))
        return r.choice((b"[", b'{"a":', b'{"filter":')) * depth
    if kind == 10:
        return r.choice((b"", r.randbytes(r.choice((1, 100, 10_000))), zlib.compress(bytes(1_000_000))))
    whole = json.dumps(likely(r), ensure_ascii=False).encode(
        "utf-16" if r.random() < 0.5 else "utf-8", "replace"
    )
    return whole[: r.randrange(len(whole) + 1)]


def request(r: random.Random) -> bytes:
    """A whole request as bytes."""
    path, content = r.choice(PATHS), body(r)
    natural = "GET" if "?" in path else r.choice(("PATCH", "DELETE", "GET")) if path[-2:] == "/a" else "POST"
    method = r.choice(METHODS) if r.random() < 0.2 else natural
    if r.random() < 0.1:
        path = r.choice(ODD)
    kind = r.choice(
        (
            "application/json",
            "application/json",
            "text/plain",
            "multipart/form-data",
            "",
            "application/json; charset=utf-7",
        )
    )
    length = (
        r.choice(("-1", "1e3", "99999999999999", "abc", "7", str(len(content) + 9)))
        if r.random() < 0.1
        else ""
    )
    head = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Type: {kind}", "Connection: close",
            f"Content-Length: {length or len(content)}"]  # fmt: skip
    if r.random() < 0.05:
        head.append("Content-Encoding: gzip")
    if r.random() < 0.03:
        head.append("X-Request-ID: " + "x" * r.choice((10, 5000, 70_000)))
    if r.random() < 0.03:
        head.append("Transfer-Encoding: chunked")
    if r.random() < 0.02:
        return r.randbytes(200)
    return "\r\n".join(head).encode("latin-1", "replace") + b"\r\n\r\n" + content


def send(port: int, data: bytes, r: random.Random) -> bytes:
    """The answer to it; some callers send in two pieces, or hang up before the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=15) as connection:
        half = r.randrange(len(data) + 1) if r.random() < 0.1 else len(data)
        answer = b""
        try:
            connection.sendall(data[:half])
            if half < len(data) and r.random() < 0.5:
                return b""  # gone
            connection.sendall(data[half:])
            while part := connection.recv(65536):
                answer += part
        except TimeoutError:
            raise
        except OSError:
            pass  # it refused to read on
        return answer


LEAKS = (
    b"Traceback",
    b'File "',
    b'.py"',
    b"site-packages",
    b"sqlalchemy",
    b"pydantic.dev",
    b"sqlite",
    b"/tmp",
)


def judge(data: bytes, answer: bytes) -> str | None:
    """What is wrong with an answer; None when nothing is."""
    if not answer:
        return None
    status = int(answer.split(b" ", 2)[1])
    if status >= 500 and status != 503:
        return f"status {status}"
    if status >= 400 and (leak := next((mark for mark in LEAKS if mark in answer), None)):
        return f"leaks {leak!r}"
    head, _, rest = answer.partition(b"\r\n\r\n")
    if status >= 400 and rest and b"application/json" in head:
        try:
            sentence = json.loads(rest)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            return "the error is not a sentence in JSON"
        if len(sentence) > 600 or "\n" in sentence:
            return "the sentence is long"
    return None
