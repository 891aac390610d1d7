"""A small client of `catalex serve`.

>>> with Client("http://localhost:8000") as shop:                                # doctest: +SKIP
...     shop.add([{"key": "NEW-1", "title": "RED RETROSPOT CAKE STAND"}])         # doctest: +SKIP
...     for item in shop.recommend(["22423", "NEW-1"], k=5):                      # doctest: +SKIP
...         print(item["title"], item["score"])                                  # doctest: +SKIP

Requests that were refused because the service is busy (429, 503) are repeated after the time that it names.
All of them may be repeated: adding is idempotent by key.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from catalex.errors import CatalexError, require

RETRIES = 4
"""Times that a busy service is asked again."""
LONGEST_WAIT = 10.0
"""Seconds between two times, at most."""
BUSY = (429, 503)

Entry = str | Mapping[str, str]
"""One item of a history: its id, or ``{"text": ...}`` of an item that the catalogue does not have."""


class ServiceError(CatalexError):
    """The service refused. `str(error)` is its sentence.

    Attributes:
        status: HTTP status; 0 when there was no answer.
        code: Short name of the error ("unknown_item").
        request_id: Under which the service's log has the request.
    """

    def __init__(self, message: str, status: int = 0, code: str = "no_answer", request_id: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.request_id = status, code, request_id


class Client:
    """A connection to one service. Safe to use from several threads; close it or use it as a context manager.

    Args:
        address: Such as ``http://localhost:8000``.
        api_key: Where the service asks for one.
        timeout: Seconds for an answer.
        retries: Times that a busy service is asked again.
    """

    def __init__(
        self, address: str, api_key: str | None = None, *, timeout: float = 30.0, retries: int = RETRIES
    ) -> None:
        require("httpx", "serve")
        import httpx

        headers = {} if api_key is None else {"X-API-Key": api_key}
        self._http = httpx.Client(base_url=address.rstrip("/"), headers=headers, timeout=timeout)
        self._failure = httpx.HTTPError
        self.retries = retries

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # --- answers --------------------------------------------------------------------------------------------

    def recommend(
        self,
        history: Sequence[Entry],
        k: int = 10,
        *,
        exclude: Sequence[str] = (),
        categories: Sequence[str] = (),
        in_stock: bool = False,
        ranges: Mapping[str, tuple[float | None, float | None]] | None = None,
        explain: bool = False,
    ) -> list[dict[str, Any]]:
        """The `k` best next items after a history, oldest first.

        Args:
            exclude: Ids of items that may not come out.
            categories, in_stock, ranges: Which items may; `ranges` gives least and largest values of
                attributes by name, both included, None for no bound.
            explain: Also give the probability of each code of the path.

        Each item has what the catalogue tells of it, ``score`` (log-probability), ``probability``, and
        ``newcomer``: whether it has one of the places that the service keeps for items that came since its
        bundle was made; its score is then that of the item before it.
        """
        request = {
            "history": list(history),
            "k": k,
            "exclude": list(exclude),
            "filter": _filter(categories, in_stock, ranges),
            "explain": explain,
        }
        return _items(self._ask("POST", "/v1/recommend", request))

    def recommend_batch(self, requests: Sequence[Mapping[str, Any]]) -> list[list[dict[str, Any]]]:
        """One list of items for each request, a mapping with the fields of ``/v1/recommend``."""
        answers = self._ask("POST", "/v1/recommend/batch", {"requests": [dict(one) for one in requests]})
        return [_items(answer) for answer in answers["answers"]]

    def similar(self, item: str | None = None, text: str | None = None, k: int = 10) -> list[dict[str, Any]]:
        """The `k` items nearest by content to an item or a text."""
        wanted = {"item": item} if text is None else {"text": text}
        return _items(self._ask("POST", "/v1/similar", {**wanted, "k": k}))

    def tokenize(self, text: str | None = None, image: bytes | None = None, k: int = 10) -> dict[str, Any]:
        """The identifier that a content would get, its path, and the nearest items. Nothing is stored."""
        request: dict[str, Any] = {"text": text, "image": _encoded(image), "k": k}
        return self._ask("POST", "/v1/tokenize", request)

    # --- items ----------------------------------------------------------------------------------------------

    def search(self, words: str = "", limit: int = 20) -> list[dict[str, Any]]:
        """Items whose title or id has all words."""
        return _items(self._ask("GET", "/v1/items", params={"search": words, "limit": limit}))

    def get(self, key: str) -> dict[str, Any]:
        """An item."""
        return self._ask("GET", _path(key))

    def add(self, items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Add items, all or none; an ``image`` may be bytes. They can be recommended when this returns."""
        prepared = [{**one, "image": _encoded(one.get("image"))} for one in items]
        return _items(self._ask("POST", "/v1/items", {"items": prepared}))

    def update(self, key: str, **changes: Any) -> dict[str, Any]:
        """Change ``title``, ``categories``, ``in_stock`` or ``attributes`` of an item."""
        return self._ask("PATCH", _path(key), changes)

    def remove(self, key: str) -> bool:
        """Remove an item; whether it was there."""
        return bool(self._ask("DELETE", _path(key))["removed"])

    def about(self) -> dict[str, Any]:
        """What is served, and the limits of requests."""
        return self._ask("GET", "/v1/about")

    # --- parts ----------------------------------------------------------------------------------------------

    def _ask(self, method: str, path: str, body: Any = None, params: Any = None) -> dict[str, Any]:
        for left in range(self.retries, -1, -1):
            try:
                answer = self._http.request(method, path, json=body, params=params)
            except self._failure as error:
                raise ServiceError(
                    f"{self._http.base_url}: the service does not answer ({type(error).__name__}). Check the "
                    "address, and that it is running."
                ) from None
            if answer.status_code in BUSY and left:
                time.sleep(min(_seconds(answer.headers.get("Retry-After")), LONGEST_WAIT))
                continue
            if answer.is_success:
                found: dict[str, Any] = answer.json()
                return found
            raise _refusal(answer)
        raise AssertionError("the last try returns or raises")


def _refusal(answer: Any) -> ServiceError:
    try:
        error = answer.json()["error"]
        return ServiceError(error["message"], answer.status_code, error["code"], error["request_id"])
    except (ValueError, KeyError, TypeError):
        return ServiceError(f"The service answered {answer.status_code}.", answer.status_code, "unknown")


def _filter(
    categories: Sequence[str],
    in_stock: bool,
    ranges: Mapping[str, tuple[float | None, float | None]] | None,
) -> dict[str, Any]:
    bounds = {name: {"min": low, "max": high} for name, (low, high) in (ranges or {}).items()}
    return {"categories": list(categories), "in_stock": in_stock, "ranges": bounds}


def _encoded(image: bytes | None) -> str | None:
    return None if image is None else base64.b64encode(image).decode()


def _seconds(text: str | None) -> float:
    return float(text) if text is not None and text.isdigit() else 1.0


def _path(key: str) -> str:
    return f"/v1/items/{quote(key, safe='')}"


def _items(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = answer["items"]
    return found
