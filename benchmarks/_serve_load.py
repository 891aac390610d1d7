"""What callers of a service ask, and what they saw: for `serve.py`."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

GOOD = (200, 201)
LONGEST_HISTORY = 20
KEPT = 10
"""Items that a caller adds before it removes its oldest: the catalogue keeps its size."""
WORDS = ("red", "blue", "mug", "bag", "light", "heart", "paper", "tin", "clock", "bird", "cake", "retrospot")
READS = {"recommend": 84, "filtered": 6, "similar": 4, "search": 4, "tokenize": 2}
"""How often each kind of question is asked, of a hundred, where the load is mixed."""
ALL = ("read", "write")


@dataclass
class Found:
    """What the callers saw: seconds of the good answers by "read" and "write", and every status."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in ALL})
    statuses: Counter[int | str] = field(default_factory=Counter)
    wall: float = 0.0

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return sum(len(found) for found in self.seconds.values()) / self.wall

    @property
    def bad(self) -> dict[int | str, int]:
        """Answers that were not good, by status or by the name of the error."""
        return {status: count for status, count in self.statuses.items() if status not in GOOD}

    def quantile(self, share: float, kinds: tuple[str, ...] = ALL) -> float:
        """Milliseconds of the good answers."""
        found = [second for kind in kinds for second in self.seconds[kind]]
        return 1000 * float(np.quantile(found, share)) if found else float("nan")


class Load:
    """Callers of one service.

    Args:
        address: Of the service.
        keys: Items to make histories of.
        texts: End each history with a text that was never seen.
        writes: Share of the requests that change the catalogue; without any all ask for recommendations.
    """

    def __init__(
        self, address: str, keys: list[str], *, api_key: str | None, texts: bool, writes: float = 0.0
    ) -> None:
        self.address, self.keys, self.texts, self.writes = address, keys, texts, writes
        self.headers = {"X-API-Key": api_key} if api_key else {}
        self.found = Found()
        """Present bucket; may be exchanged while callers are at work."""

    async def run(self, callers: int, seconds: float, rate: float | None = None) -> Found:
        """`callers` callers at once, each over a connection of its own, for some seconds.

        Args:
            rate: Requests a second of all together, at times that do not depend on the answers; a request
                that begins late counts from when it was due. Without it each caller asks again at once.
        """
        began = time.perf_counter()
        until = began + seconds
        await asyncio.gather(*(self._call(number, callers, until, rate) for number in range(callers)))
        self.found.wall = time.perf_counter() - began
        return self.found

    async def _call(self, number: int, callers: int, until: float, rate: float | None) -> None:
        r, own, count = random.Random(number), list[str](), 0
        step = callers / rate if rate else 0.0
        due = time.perf_counter() + step * number / callers
        async with httpx.AsyncClient(
            base_url=self.address, headers=self.headers, timeout=30, trust_env=False
        ) as http:
            while (now := time.perf_counter()) < until:
                if rate:
                    await asyncio.sleep(max(0.0, due - now))
                began = due if rate else now
                due += step
                kind = "write" if r.random() < self.writes else "read"
                count += 1
                method, path, body = self._write(r, own, number, count) if kind == "write" else self._read(r)
                await self._ask(http, kind, began, method, path, body)
            for key in own:
                await self._ask(http, "write", time.perf_counter(), "DELETE", f"/v1/items/{key}", None)

    async def _ask(
        self, http: httpx.AsyncClient, kind: str, began: float, method: str, path: str, body: Any
    ) -> None:
        try:
            answer = await http.request(method, path, json=body)
        except httpx.HTTPError as error:
            self.found.statuses[type(error).__name__] += 1
            return
        self.found.statuses[answer.status_code] += 1
        if answer.status_code in GOOD:
            self.found.seconds[kind].append(time.perf_counter() - began)
        elif answer.status_code == 429:
            await asyncio.sleep(0.05)

    def _read(self, r: random.Random) -> tuple[str, str, Any]:
        kind = r.choices(list(READS), list(READS.values()))[0] if self.writes else "recommend"
        if kind == "search":
            return "GET", f"/v1/items?search={r.choice(WORDS)}", None
        if kind == "similar":
            return "POST", "/v1/similar", {"item": r.choice(self.keys)}
        if kind == "tokenize":
            return "POST", "/v1/tokenize", {"text": _title(r)}
        history: list[Any] = [r.choice(self.keys) for _ in range(r.randrange(1, LONGEST_HISTORY + 1))]
        if self.texts:
            history[-1] = {"text": f"red and blue tea cup number {r.random()}"}
        body: dict[str, Any] = {"history": history, "k": 10}
        if kind == "filtered":
            body["filter"] = {"in_stock": True}
        return "POST", "/v1/recommend", body

    def _write(self, r: random.Random, own: list[str], number: int, count: int) -> tuple[str, str, Any]:
        """Add, change the stock, or remove: each caller its own items only."""
        kind = r.choices(("add", "change", "remove"), (4, 4, 4 if len(own) >= KEPT else 2))[0]
        if kind == "add" and len(own) >= KEPT:
            kind = "remove"
        if kind == "add" or not own:
            own.append(f"load-{os.getpid()}-{number}-{count}")
            return "POST", "/v1/items", {"items": [{"key": own[-1], "title": _title(r)}]}
        if kind == "change":
            return "PATCH", f"/v1/items/{r.choice(own)}", {"in_stock": r.random() < 0.5}
        return "DELETE", f"/v1/items/{own.pop(0)}", None


def _title(r: random.Random) -> str:
    return " ".join(r.choices(WORDS, k=4)) + f" {r.randrange(1000)}"


async def some_keys(address: str, api_key: str | None) -> list[str]:
    """Items to make histories of."""
    headers = {"X-API-Key": api_key} if api_key else {}
    async with httpx.AsyncClient(base_url=address, headers=headers, timeout=30, trust_env=False) as http:
        answer = (await http.get("/v1/items?limit=200")).raise_for_status()
        return [item["key"] for item in answer.json()["items"]]


@dataclass(frozen=True)
class Process:
    """What a process holds on to."""

    mib: float
    files: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> Process:
        """Of a process of this machine."""
        folder = Path(f"/proc/{pid}")
        pages = int((folder / "statm").read_text().split()[1])
        return cls(
            pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
            len(os.listdir(folder / "fd")),
            len(os.listdir(folder / "task")),
        )
