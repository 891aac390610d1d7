"""A small web server on 127.0.0.1 for tests: ranges, and every kind of failure on demand.

>>> with Server() as server:                                   # doctest: +SKIP
...     url = server.add("/file.gz", data, cut_after=[1000])   # doctest: +SKIP

Each request is recorded in `server.requests`, so that tests can say what was asked and how often.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


@dataclass
class Page:
    """What one path answers.

    Attributes:
        data: The whole file.
        ranges: Whether ``Range`` is understood.
        etag: Version tag; None sends none.
        headers: Further headers of good answers.
        statuses: Answers to send first, one a request: (status, headers).
        cut_after: Bytes after which the next answers break off, one a request.
        delay: Seconds before each answer.
        slow: When positive, the body is sent in this many pieces, 50 ms apart.
        length: Whether good answers tell their length.
    """

    data: bytes
    ranges: bool = True
    etag: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    statuses: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    cut_after: list[int] = field(default_factory=list)
    delay: float = 0.0
    slow: int = 0
    length: bool = True


@dataclass(frozen=True)
class Request:
    """One recorded request."""

    path: str
    headers: Mapping[str, str]
    time: float
    """`time.monotonic()` of its arrival."""


class Server:
    """The server; a context manager. Pages are added with `add`, which returns their address."""

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.requests: list[Request] = []
        self.busiest = 0
        """Most requests that were under way at one time."""
        self._under_way = 0
        self._lock = threading.Lock()

    def add(self, path: str, data: bytes, **options: Any) -> str:
        """Serve `data` at `path` with the options of `Page`; its address."""
        options.setdefault("etag", f'"{hashlib.sha256(data).hexdigest()[:16]}"')
        self.pages[path] = Page(data, **options)
        return self.url + path

    @property
    def url(self) -> str:
        """Address of the server, without a slash at the end."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def asked(self, path: str) -> list[Request]:
        """The requests for one path, in order."""
        return [request for request in self.requests if request.path == path]

    def __enter__(self) -> Self:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 10
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                with outer._lock:
                    outer.requests.append(Request(self.path, dict(self.headers.items()), time.monotonic()))
                    outer._under_way += 1
                    outer.busiest = max(outer.busiest, outer._under_way)
                try:
                    # A client may hang up whenever it likes.
                    with contextlib.suppress(ConnectionError):
                        outer._answer(self)
                finally:
                    with outer._lock:
                        outer._under_way -= 1

            def log_message(self, format: str, *values: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients hang up; no news
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        page = self.pages.get(handler.path)
        if page is None:
            self._send(handler, 404, {}, b"nothing here")
            return
        time.sleep(page.delay)
        with self._lock:
            status = page.statuses.pop(0) if page.statuses else None
            cut = page.cut_after.pop(0) if page.cut_after and status is None else None
        if status is not None:
            self._send(handler, status[0], status[1], b"not now")
            return
        headers = dict(page.headers)
        if page.etag:
            headers["ETag"] = page.etag
        start = self._range_start(handler, page)
        if start is not None and start >= len(page.data):
            self._send(handler, 416, {"Content-Range": f"bytes */{len(page.data)}"}, b"")
            return
        if start is not None:
            headers["Content-Range"] = f"bytes {start}-{len(page.data) - 1}/{len(page.data)}"
        body = page.data[start or 0 :]
        self._send(handler, 200 if start is None else 206, headers, body, cut, page.length, page.slow)

    @staticmethod
    def _range_start(handler: BaseHTTPRequestHandler, page: Page) -> int | None:
        """First byte asked for, or None when the whole file is to be sent."""
        asked, condition = handler.headers.get("Range"), handler.headers.get("If-Range")
        if not page.ranges or asked is None:
            return None
        versions = (page.etag, page.headers.get("Last-Modified"))
        if condition is not None and condition not in versions:
            return None
        return int(asked.removeprefix("bytes=").rstrip("-"))

    @staticmethod
    def _send(
        handler: BaseHTTPRequestHandler,
        status: int,
        headers: Mapping[str, str],
        body: bytes,
        cut: int | None = None,
        length: bool = True,
        slow: int = 0,
    ) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        if length:
            handler.send_header("Content-Length", str(len(body)))
        if cut is not None or not length:
            handler.send_header("Connection", "close")
            handler.close_connection = True
        handler.end_headers()
        sent = body if cut is None else body[:cut]
        step = len(sent) // slow + 1 if slow else max(len(sent), 1)
        for begin in range(0, len(sent), step):
            handler.wfile.write(sent[begin : begin + step])
            handler.wfile.flush()
            time.sleep(0.05 if slow else 0)
