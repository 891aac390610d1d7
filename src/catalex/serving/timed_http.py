"""HTTP/1.1 as uvicorn speaks it, with two limits that it lacks: time for a head, number of connections.

A client that sends its request's head one byte a minute would hold a connection for hours. Here a connection
without a whole head is closed after `head_timeout` seconds.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
    b"connection: close\r\ncontent-length: %d\r\n\r\n%s"
)
MESSAGE = (
    b'{"error": {"code": "unavailable", "message": "Too many connections are open; ask again in a moment.", '
    b'"request_id": ""}}'
)


def timed_protocol(head_timeout: float, max_connections: int) -> type[asyncio.Protocol]:
    """The protocol class for `uvicorn.Config(http=...)`."""

    class TimedH11(H11Protocol):
        late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > max_connections:
                transport.write(REFUSAL % (len(MESSAGE), MESSAGE))
                transport.close()
                return
            self._await_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._head_came()
            else:
                self._await_head()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
                self._head_came()  # uvicorn's own timer for idle connections runs from here

        def connection_lost(self, exc: Exception | None) -> None:
            self._head_came()
            super().connection_lost(exc)

        def _await_head(self) -> None:
            if self.late is None:
                self.late = self.loop.call_later(head_timeout, self.transport.close)

        def _head_came(self) -> None:
            if self.late is not None:
                self.late.cancel()
                self.late = None

    return TimedH11
