"""Errors on the wire: one clear sentence as JSON, never a traceback.

::

    {"error": {"code": "unknown_item", "message": "...", "request_id": "..."}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response

MESSAGES = {
    400: "bad_request",
    401: "no_key",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "body_too_slow",
    409: "conflict",
    413: "too_large",
    415: "unsupported_type",
    422: "invalid",
    429: "overloaded",
    503: "unavailable",
}
"""The code of an error that names none."""


class ProblemError(Exception):
    """Ends a request with `status` and one sentence."""

    def __init__(
        self, status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, dict(headers or {})
        self.code = code or MESSAGES.get(status, "error")


def busy(message: str, status: int = 429, after: int = 1) -> ProblemError:
    """Come again in `after` seconds."""
    return ProblemError(status, message, headers={"Retry-After": str(after)})


def respond(problem: ProblemError, request_id: str) -> Response:
    """The answer. Everything outside ASCII is escaped: a lone surrogate of the request cannot break it."""
    body = {"error": {"code": problem.code, "message": problem.message, "request_id": request_id}}
    return Response(json.dumps(body).encode(), problem.status, problem.headers, media_type="application/json")


def explain(errors: Sequence[Mapping[str, Any]]) -> str:
    """The first of pydantic's errors as a sentence: where, what, and the value, shortened."""
    first = errors[0]
    where = ".".join(str(part) for part in first.get("loc", ()) if part != "body") or "body"
    text = str(first.get("msg", "is not valid"))
    text = text[0].lower() + text[1:]
    if first.get("type") == "missing":
        return f"{where[:80]}: the field is missing."
    if first.get("type") == "json_invalid":
        return "The body is not valid JSON."
    if where == "body" and isinstance(first.get("input"), bytes):
        return "The body must be JSON, with the header 'Content-Type: application/json'."
    shown = repr(first.get("input"))[:500]
    return f"{where[:80]}: {text[:200]} (found {shown if len(shown) <= 80 else shown[:77] + '...'})."
