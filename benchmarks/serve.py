"""Latency and throughput of a running service on loopback, at rising concurrency, and a soak.

    catalex serve runs/demo/bundle/year-two &
    python benchmarks/serve.py http://localhost:8000 --seconds 10 --concurrency 1 2 4 8 16 32 64 128
    python benchmarks/serve.py http://localhost:8000 --soak 600 --pid $!
    python benchmarks/serve.py http://localhost:8000 --texts      # histories of texts that were never seen

Every caller asks again as soon as it has its answer (closed loop), with a random history of 1 to 20 items,
over a connection of its own. The callers share this machine's processors with the service.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from catalex.reporting.ledger import BenchmarkLine, append

PART = 15.0
"""Seconds between two lines of a soak."""


@dataclass
class Found:
    """What the callers saw."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int | str] = field(default_factory=Counter)
    wall: float = 0.0

    @property
    def rate(self) -> float:
        """Answers of 200 a second."""
        return self.statuses[200] / self.wall

    def quantile(self, share: float) -> float:
        """Milliseconds of the good answers."""
        return 1000 * float(np.quantile(self.seconds, share)) if self.seconds else float("nan")


async def load(options: argparse.Namespace, keys: list[str], callers: int, seconds: float) -> Found:
    """`callers` callers at once, for some seconds."""
    found, until = Found(), time.perf_counter() + seconds

    async def call(number: int) -> None:
        r = random.Random(number)
        async with client(options) as http:
            while time.perf_counter() < until:
                history: list[Any] = [r.choice(keys) for _ in range(r.randrange(1, 21))]
                if options.texts:
                    history[-1] = {"text": f"red and blue tea cup number {r.random()}"}
                began = time.perf_counter()
                try:
                    answer = await http.post("/v1/recommend", json={"history": history, "k": 10})
                    found.statuses[answer.status_code] += 1
                    if answer.status_code == 200:
                        found.seconds.append(time.perf_counter() - began)
                    elif answer.status_code == 429:
                        await asyncio.sleep(0.05)
                except httpx.HTTPError as error:
                    found.statuses[type(error).__name__] += 1

    began = time.perf_counter()
    await asyncio.gather(*(call(number) for number in range(callers)))
    found.wall = time.perf_counter() - began
    return found


def client(options: argparse.Namespace) -> httpx.AsyncClient:
    """A connection of its own."""
    headers = {"X-API-Key": options.api_key} if options.api_key else {}
    return httpx.AsyncClient(base_url=options.address, headers=headers, timeout=30, trust_env=False)


async def some_keys(options: argparse.Namespace) -> list[str]:
    """Items to make histories of."""
    async with client(options) as http:
        return [item["key"] for item in (await http.get("/v1/items?limit=200")).json()["items"]]


def resident_mib(pid: int) -> float:
    """Memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def rising(options: argparse.Namespace, keys: list[str]) -> None:
    """A line for each number of callers."""
    print(f"{'callers':>8} {'answers/s':>10} {'p50 ms':>8} {'p99 ms':>8}  statuses")
    for callers in options.concurrency:
        asyncio.run(load(options, keys, callers, min(1.0, options.seconds)))  # not counted
        found = asyncio.run(load(options, keys, callers, options.seconds))
        median, tail = found.quantile(0.5), found.quantile(0.99)
        print(
            f"{callers:8d} {found.rate:10.1f} {median:8.1f} {tail:8.1f}  {dict(found.statuses)}", flush=True
        )
        if options.record is not None:
            where = f"serve/{options.name}-{callers}"
            record(options, f"{where}-rate", found.rate, "answers/s")
            record(options, f"{where}-p50", median, "ms")
            record(options, f"{where}-p99", tail, "ms")


def soak(options: argparse.Namespace, keys: list[str]) -> None:
    """A line every quarter of a minute: answers, errors, the service's memory. Growth is told from the first
    quarter of the time on, when everything has been used once."""
    began, sizes, bad = time.monotonic(), [], Counter[int | str]()
    while (passed := time.monotonic() - began) < options.soak:
        found = asyncio.run(load(options, keys, options.concurrency[0], min(PART, options.soak - passed)))
        size = resident_mib(options.pid) if options.pid else float("nan")
        sizes.append(size)
        bad.update({status: count for status, count in found.statuses.items() if status != 200})
        print(
            f"{time.monotonic() - began:7.0f} s {found.rate:8.1f} answers/s, "
            f"p99 {found.quantile(0.99):7.1f} ms, {size:8.1f} MiB, {dict(found.statuses)}",
            flush=True,
        )
    early = sizes[len(sizes) // 4]
    print(f"growth after the first quarter: {sizes[-1] - early:+.1f} MiB; other than 200: {dict(bad)}")
    if options.record is not None:
        record(options, f"serve/{options.name}-soak-growth", sizes[-1] - early, "MiB")


def record(options: argparse.Namespace, name: str, value: float, unit: str) -> None:
    """One line of the benchmark ledger."""
    values: dict[str, Any] = {"name": name, "value": round(value, 2), "unit": unit}
    append(options.record, BenchmarkLine.parse(values, "serve"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("address", nargs="?", help="of a running service")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128])
    parser.add_argument("--seconds", type=float, default=10.0, help="for each concurrency")
    parser.add_argument("--texts", action="store_true", help="end each history with a text never seen")
    parser.add_argument("--soak", type=float, help="seconds at the first concurrency instead")
    parser.add_argument("--pid", type=int, help="of the service, for its memory")
    parser.add_argument("--api-key")
    parser.add_argument("--name", default="recommend", help="of the measurement")
    parser.add_argument("--record", type=Path, help="benchmark ledger to append to")
    options = parser.parse_args()
    if options.address is None:
        print("no address is given: start 'catalex serve BUNDLE' and name its address")
        return
    keys = asyncio.run(some_keys(options))
    print(
        f"{platform.machine()}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f} before the start"
    )
    (soak if options.soak else rising)(options, keys)


if __name__ == "__main__":
    main()
