"""A service on a free port of this machine, in a thread of the test."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from catalex.serving.app import build_app
from catalex.serving.front import FrontDoor
from catalex.serving.keys import Keys
from catalex.serving.run import bound, make_server
from catalex.serving.service import Service
from catalex.serving.settings import ServeOptions
from catalex.serving.swap import Swap


@dataclass
class Running:
    """A running service."""

    address: str
    port: int
    service: Service
    swap: Swap
    http: httpx.Client

    def post(self, path: str, body: Any, **more: Any) -> httpx.Response:
        return self.http.post(path, json=body, **more)

    def raw(self, data: bytes, wait: float = 5.0) -> bytes:
        """What the service sends back for bytes of our own, until it closes the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=wait) as connection:
            connection.sendall(data)
            answer = b""
            while part := connection.recv(65536):
                answer += part
            return answer


@contextmanager
def listening(front: Any, options: ServeOptions) -> Iterator[int]:
    """Any ASGI application behind the server of `catalex serve`; its port."""
    place = bound("127.0.0.1", 0)
    server = make_server(front, options)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([place])))
    thread.start()
    try:
        yield place.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)
        place.close()


@contextmanager
def running(bundle: Path, keys: Sequence[tuple[str, str]] = (), **options: Any) -> Iterator[Running]:
    """The service of a bundle with these options."""
    chosen = ServeOptions(device="cpu", **options)
    service = Service(bundle, chosen)
    swap = Swap(service)
    front: FrontDoor = build_app(service, Keys(keys), swap).state.front
    try:
        with listening(front, chosen) as port:
            address = f"http://127.0.0.1:{port}"
            with httpx.Client(base_url=address, timeout=20, trust_env=False) as http:
                yield Running(address, port, service, swap, http)
    finally:
        swap.close()
        service.close()
