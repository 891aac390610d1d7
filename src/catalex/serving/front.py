"""The front door: every request passes these guards, in this order, before any route sees it.

1. it gets an id, which the answer and the log line carry;
2. it is refused when it comes without the key that its path asks for (401, 403);
3. its body is read: within the size limit (413), within the time limit (408), not compressed (415);
4. it is admitted while the queue has room (429 with Retry-After);
5. it is answered within the time limit, else the answer is 503 with Retry-After.

A body is read before the request takes a place in the queue, so slow senders keep nobody waiting.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from catalex.serving.keys import ROLES, Keys, shown_keys
from catalex.serving.metrics import Metrics
from catalex.serving.problem import ProblemError, busy, respond
from catalex.serving.settings import ServeOptions

log = logging.getLogger("catalex.serving")

GOOD_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""Ids of requests that are taken over from the caller; they go into the log."""

SECURITY = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'; base-uri 'none'; "
        b"form-action 'none'",
    ),
]
"""The page loads from its own server only and is nobody's frame."""


class ClientGoneError(Exception):
    """The caller hung up before the request was whole."""


@dataclass
class Watch:
    """What one request is known by."""

    id: str
    route: str = "none"
    status: int = 0


class FrontDoor:
    """ASGI middleware with all guards.

    Args:
        role_of: Which role a method and path ask for; None for what is open to all.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        options: ServeOptions,
        keys: Keys,
        metrics: Metrics,
        role_of: Callable[[str, str], str | None],
    ) -> None:
        self.app, self.options, self.keys, self.metrics, self.role_of = app, options, keys, metrics, role_of
        self.at_work = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        watch = Watch(_request_id(scope))
        scope.setdefault("state", {})["request_id"] = watch.id

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                watch.status = message["status"]
                own = [(b"x-request-id", watch.id.encode()), *SECURITY]
                message = {**message, "headers": [*message.get("headers", []), *own]}
            try:
                await send(message)
            except Exception as error:  # the connection broke, or what came on it was no HTTP
                raise ClientGoneError from error

        try:
            await self._guard(scope, receive, watched, watch)
        except ProblemError as problem:
            if not watch.status:
                await respond(problem, watch.id)(scope, receive, watched)
        except ClientGoneError:
            watch.status = 499
        except Exception as error:
            log.error("request %s failed: %s", watch.id, type(error).__name__, exc_info=error)
            if not watch.status:
                failed = ProblemError(
                    500, "The service failed to answer; its log has the reason.", "internal"
                )
                await respond(failed, watch.id)(scope, receive, watched)
        finally:
            route = getattr(scope.get("route"), "path", None) or watch.route
            taken = time.perf_counter() - began
            self.metrics.requests.labels(route, str(watch.status)).inc()
            self.metrics.seconds.labels(route).observe(taken)
            log.info(
                "%s %s %s %d %.1f ms", watch.id, scope["method"][:10], route, watch.status, 1000 * taken
            )  # the template of the route: a path may hold a caller's item id

    async def _guard(self, scope: Scope, receive: Receive, send: Send, watch: Watch) -> None:
        needed = self.role_of(scope["method"], scope["path"])
        if needed is None:
            await self.app(scope, receive, send)
            return
        self._check_key(scope, needed)
        body = await self._body(scope, receive)
        if needed == "admin":  # loading a model takes as long as it takes, and keeps nobody waiting
            await self.app(scope, _replay(body, receive), send)
            return
        if self.at_work >= self.options.max_queue:
            raise self._refused("queue", busy("Too many requests are waiting; ask again in a moment."))
        self.at_work += 1
        self.metrics.at_work.set(self.at_work)
        try:
            await asyncio.wait_for(self.app(scope, _replay(body, receive), send), self.options.timeout)
        except TimeoutError:
            raise self._refused(
                "timeout", busy(f"No answer within {self.options.timeout:g} seconds; ask again later.", 503)
            ) from None
        finally:
            self.at_work -= 1
            self.metrics.at_work.set(self.at_work)

    def _check_key(self, scope: Scope, needed: str) -> None:
        shown = shown_keys(scope["headers"])
        role = self.keys.role(shown)
        if role < 0:
            message = "This key is not known." if shown else "This request needs an API key."
            problem = ProblemError(401, message, headers={"WWW-Authenticate": "Bearer"})
            raise self._refused("key", problem)
        if role < ROLES.index(needed):
            if not self.keys.needed:
                message = "Models can be swapped only where the service was started with API keys."
            else:
                message = f"This key may not do that: it needs the role {needed!r}."
            raise self._refused("key", ProblemError(403, message))

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body."""
        headers = dict(scope["headers"])
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise self._refused(
                "encoding", ProblemError(415, "Compressed bodies are not taken; send it plain.")
            )
        too_large = ProblemError(413, f"The body has more than {self.options.max_body} bytes.")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 15 or int(length) > self.options.max_body:
            raise self._refused("size", _last(too_large))
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.options.body_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGoneError
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self.options.max_body:
                        raise self._refused("size", _last(too_large))
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            late = f"The body did not arrive within {self.options.body_timeout:g} seconds."
            raise self._refused("slow", _last(ProblemError(408, late))) from None

    def _refused(self, guard: str, problem: ProblemError) -> ProblemError:
        self.metrics.refused.labels(guard).inc()
        return problem


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and GOOD_ID.fullmatch(value.decode("latin-1")):
            return str(value.decode("latin-1"))
    return uuid.uuid4().hex


def _last(problem: ProblemError) -> ProblemError:
    """The rest of the body will not be read, so the connection cannot be used again."""
    problem.headers["Connection"] = "close"
    return problem


def _replay(body: bytes, receive: Receive) -> Receive:
    """`receive` of a request whose body has been read."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()  # what comes now is that the caller hung up
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
