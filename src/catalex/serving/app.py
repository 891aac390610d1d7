"""The HTTP application: routes, errors as sentences, the page, and the front door before all of it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

import catalex
from catalex.errors import CatalexError
from catalex.serving import wire
from catalex.serving.connection import StoreUnavailableError
from catalex.serving.front import FrontDoor
from catalex.serving.items import KeyTakenError, UnknownItemError
from catalex.serving.keys import Keys
from catalex.serving.problem import ProblemError, busy, explain, respond
from catalex.serving.routes_answers import answer_routes
from catalex.serving.routes_items import item_routes
from catalex.serving.routes_state import model_routes, state_routes
from catalex.serving.service import Service
from catalex.serving.settings import ServeOptions
from catalex.serving.swap import Swap

PAGE = Path(__file__).parent / "page"
FAILURES = (400, 401, 403, 404, 405, 408, 409, 413, 415, 422, 429, 503)
ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": wire.Error} for status in FAILURES}
PRIVATE_PATH = re.compile(r"(?<![\w/])/(?:[\w.@+-]+/)+[\w.@+-]*|\b\w+(?:\+\w+)?://[^\s'\"]+")
"""Paths and addresses in a sentence, which would tell callers about this machine."""


def role_of(method: str, path: str) -> str | None:
    """The role that a request needs; None for what is open to all: the page, liveness, readiness."""
    if path.startswith("/v1/models"):
        return "admin"
    if path == "/v1/items" or path.startswith("/v1/items/"):
        return "read" if method in ("GET", "HEAD") else "write"
    return "read" if path.startswith("/v1") or path == "/metrics" else None


def build_app(service: Service, keys: Keys, swap: Swap | None = None) -> FastAPI:
    """The application over a service; its front door is at ``app.state.front``."""
    app = FastAPI(
        title="catalex",
        version=catalex.__version__,
        summary="Recommendations over identifiers, from a catalogue that changes while it is served.",
        description='Errors are `{"error": {"code", "message", "request_id"}}`, with one clear sentence.',
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=ERRORS,
    )
    swap = swap or Swap(service)
    for routes in (answer_routes(service), item_routes(service), state_routes(service)):
        app.include_router(routes)
    app.include_router(model_routes(service, swap))

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})

    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    _add_errors(app)
    origins = service.options.cors_origins
    if origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(origins), allow_methods=["*"], allow_headers=["*"]
        )
    app.state.front = FrontDoor(
        app, options=service.options, keys=keys, metrics=service.metrics, role_of=role_of
    )
    schema = _with_limits(app.openapi(), service.options)
    app.openapi_schema = _with_keys(schema) if keys.needed else schema
    return app


def _add_errors(app: FastAPI) -> None:
    """Every failure becomes a `ProblemError`, and that one JSON sentence."""

    def on(kind: type[Exception], problem: Callable[[Any], ProblemError]) -> None:
        async def handle(request: Request, error: Exception) -> Response:
            found = problem(error)
            if found.status == 405:
                allowed = ", ".join(_methods(app.openapi(), request.scope["path"]))
                found = ProblemError(405, f"This path takes {allowed} only.", headers={"Allow": allowed})
            return respond(found, request.scope.get("state", {}).get("request_id", ""))

        handler: Callable[[Request, Exception], Awaitable[Response]] = handle
        app.add_exception_handler(kind, handler)

    on(ProblemError, lambda error: error)
    on(RequestValidationError, lambda error: ProblemError(422, explain(error.errors())))
    on(HTTPException, _explain_http)
    on(UnknownItemError, lambda error: ProblemError(404, _sentence(error), "unknown_item"))
    on(KeyTakenError, lambda error: ProblemError(409, _sentence(error), "key_taken"))
    on(StoreUnavailableError, lambda _: busy("The catalogue's store cannot be reached; ask again.", 503))
    on(CatalexError, lambda error: ProblemError(422, _sentence(error)))
    on(
        Exception,
        lambda _: ProblemError(500, "The service failed to answer; its log has the reason.", "internal"),
    )


def _explain_http(error: HTTPException) -> ProblemError:
    """Of what no route answers."""
    headers = dict(error.headers or {})
    if error.status_code == 404:
        return ProblemError(404, "There is nothing at this path.", headers=headers)
    return ProblemError(error.status_code, _sentence(error.detail), headers=headers)


def _methods(schema: dict[str, Any], path: str) -> list[str]:
    """The methods that a path takes; a single route knows only its own."""
    found: set[str] = set()
    for template, methods in schema["paths"].items():
        if re.fullmatch(re.sub(r"\\{\w+\\}", ".+", re.escape(template)), path, re.DOTALL):
            found |= {method.upper() for method in methods}
    return sorted(found) or ["GET"]


def _sentence(error: object) -> str:
    """One sentence without what tells about this machine."""
    text = PRIVATE_PATH.sub("…", str(error)).strip()
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "?")) else f"{text}."


def _with_limits(schema: dict[str, Any], options: ServeOptions) -> dict[str, Any]:
    """The schema, told the limits of this service."""
    parts = schema["components"]["schemas"]
    parts["RecommendRequest"]["properties"]["k"]["maximum"] = options.max_k
    parts["RecommendRequest"]["properties"]["history"]["maxItems"] = options.max_history
    parts["BatchRequest"]["properties"]["requests"]["maxItems"] = options.max_items
    parts["AddRequest"]["properties"]["items"]["maxItems"] = options.max_items
    return schema


def _with_keys(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema, told that it needs a key."""
    scheme = {"type": "apiKey", "in": "header", "name": "X-API-Key"}
    schema["components"]["securitySchemes"] = {"key": scheme}
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            if role_of(method.upper(), path) is not None:
                operation["security"] = [{"key": []}]
    return schema
