"""Latency and throughput of a running service on loopback, at rising concurrency, and a soak.

    catalex serve runs/demo/bundle/year-two &
    python benchmarks/serve.py http://localhost:8000 --seconds 10 --concurrency 1 2 4 8 16 32 64 128
    python benchmarks/serve.py http://localhost:8000 --soak 600 --concurrency 16 --writes 0.1 --pid $!
    python benchmarks/serve.py http://localhost:8000 --texts      # histories of texts that were never seen

At rising concurrency every caller asks again as soon as it has its answer, with a random history of 1 to 20
items, over a connection of its own. A soak first looks for the rate at which that saturates the service, then
asks at a share of it, at times that do not depend on the answers, and prints a line a minute: latencies,
errors, and the memory, open files and threads of the service. The callers share this machine's processors
with the service. ``--record docs/results/benchmarks.jsonl`` appends every number to the ledger.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
from _serve_load import Found, Load, Process, some_keys

from catalex.reporting.ledger import BenchmarkLine, append

MINUTE = 60.0
SATURATING = 10.0
"""Seconds of the search for the saturating rate."""


def load_of(options: argparse.Namespace, keys: list[str]) -> Load:
    """Callers as the options want them."""
    return Load(options.address, keys, api_key=options.api_key, texts=options.texts, writes=options.writes)


def rising(options: argparse.Namespace, keys: list[str]) -> None:
    """A line for each number of callers."""
    print(f"{'callers':>8} {'answers/s':>10} {'p50 ms':>8} {'p99 ms':>8}  statuses")
    for callers in options.concurrency:
        asyncio.run(load_of(options, keys).run(callers, min(1.0, options.seconds)))  # not counted
        found = asyncio.run(load_of(options, keys).run(callers, options.seconds))
        median, tail = found.quantile(0.5), found.quantile(0.99)
        print(
            f"{callers:8d} {found.rate:10.1f} {median:8.1f} {tail:8.1f}  {dict(found.statuses)}", flush=True
        )
        record(options, f"{callers:03}-callers-rate", found.rate, "answers/s")
        record(options, f"{callers:03}-callers-p50", median, "ms")
        record(options, f"{callers:03}-callers-p99", tail, "ms")


async def soak(options: argparse.Namespace, keys: list[str]) -> None:
    """A line a minute. Growth is told from the first quarter of the time on, when all has been used once."""
    callers = options.concurrency[0]
    rate = options.rate
    if rate is None:
        full = await load_of(options, keys).run(callers, min(SATURATING, options.soak))
        rate = options.fraction * full.rate
        print(f"saturated at {full.rate:.0f} answers/s: asking {rate:.0f} times a second", flush=True)
    load, parts, held = load_of(options, keys), list[Found](), list[Process]()
    at_work = asyncio.create_task(load.run(callers, options.soak, rate))
    print(
        f"{'minute':>6} {'answers/s':>10} {'read p50':>9} {'p99 ms':>8} {'write p50':>10} {'p99 ms':>8}"
        f" {'MiB':>8} {'files':>6} {'threads':>8}  not good"
    )
    while not at_work.done():
        length, began = min(MINUTE, max(1.0, options.soak / 4)), time.perf_counter()
        await asyncio.wait([at_work], timeout=length)
        part, load.found = load.found, Found()
        part.wall = time.perf_counter() - began
        parts.append(part)
        held.append(Process.of(options.pid) if options.pid else Process(float("nan"), 0, 0))
        print(
            f"{len(parts):6d} {part.rate:10.1f} {part.quantile(0.5, ('read',)):9.1f} "
            f"{part.quantile(0.99, ('read',)):8.1f} {part.quantile(0.5, ('write',)):10.1f} "
            f"{part.quantile(0.99, ('write',)):8.1f} {held[-1].mib:8.1f} {held[-1].files:6d} "
            f"{held[-1].threads:8d}  {part.bad}",
            flush=True,
        )
    await at_work
    tell(options, parts, held)


def tell(options: argparse.Namespace, parts: list[Found], held: list[Process]) -> None:
    """The summary of a soak."""
    early, last = held[len(held) // 4], held[-1]
    bad = sum((Counter(part.bad) for part in parts), Counter[int | str]())
    good = sum(len(seconds) for part in parts for seconds in part.seconds.values())
    print(
        f"{good:,} good answers, {bad.total()} others {dict(bad)}; after the first quarter: "
        f"{last.mib - early.mib:+.1f} MiB, {last.files - early.files:+d} files, "
        f"{last.threads - early.threads:+d} threads"
    )
    record(options, "soak-answers", good, "good answers")
    record(options, "soak-errors", bad.total(), "other answers")
    if options.pid:
        record(options, "soak-growth", last.mib - early.mib, "MiB after the first quarter")
        record(options, "soak-memory", last.mib, "MiB at the end")


def record(options: argparse.Namespace, name: str, value: float, unit: str) -> None:
    """One line of the benchmark ledger, where it is wanted."""
    if options.record is not None:
        full = f"serve/{options.name}-{name}"
        values: dict[str, Any] = {"name": full, "value": round(value, 2), "unit": unit}
        append(options.record, BenchmarkLine.parse(values, "serve"))


def main() -> int:
    """Measure; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("address", nargs="?", help="of a running service")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128])
    parser.add_argument("--seconds", type=float, default=10.0, help="for each concurrency")
    parser.add_argument("--texts", action="store_true", help="end each history with a text never seen")
    parser.add_argument(
        "--writes", type=float, default=0.0, help="share of requests that add, change or remove"
    )
    parser.add_argument("--soak", type=float, help="seconds at the first concurrency instead")
    parser.add_argument("--rate", type=float, help="requests a second of the soak; default: see --fraction")
    parser.add_argument(
        "--fraction", type=float, default=0.6, help="of the saturating rate, which is measured first"
    )
    parser.add_argument("--pid", type=int, help="of the service, for its memory, open files and threads")
    parser.add_argument("--api-key")
    parser.add_argument("--name", default="recommend", help="of the measurement")
    parser.add_argument("--record", type=Path, help="benchmark ledger to append to")
    options = parser.parse_args()
    if options.address is None:
        print("no address is given: start 'catalex serve BUNDLE' and name its address")
        return 0
    try:
        keys = asyncio.run(some_keys(options.address, options.api_key))
    except httpx.HTTPError as error:
        print(f"{options.address}: the service does not answer as expected ({type(error).__name__})")
        return 1
    print(
        f"{platform.machine()}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f} before the start"
    )
    if options.soak:
        asyncio.run(soak(options, keys))
    else:
        rising(options, keys)
    return 0


if __name__ == "__main__":
    sys.exit(main())
