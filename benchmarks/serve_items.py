"""How a service bears a large catalogue: start, memory, and each question that the page asks.

    python benchmarks/serve_items.py --items 1000000
    python benchmarks/serve_items.py --items 1000000 --page        # in Chromium too, through selenium

The catalogue is made up: random titles and identifiers, and a small T5 of random weights. Every question is
asked by one caller, again and again; then again with a change of the catalogue before each, which makes what
is remembered of it stale. ``--record docs/results/benchmarks.jsonl`` appends the numbers to the ledger.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from _serve_bundle import make_bundle
from _serve_load import Process

from catalex.reporting.ledger import BenchmarkLine, append

ADDRESS = re.compile(r"catalex answers at http://localhost:(\d+)")


def started(bundle: Path, store: Path) -> tuple[subprocess.Popen[str], str, float]:
    """The service, its address, and the seconds until it answered."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "catalex", "serve", str(bundle), "--port", "0", "--store", str(store)]
    log = store.with_suffix(".log")
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, stderr=file, text=True)
    while (found := ADDRESS.search(log.read_text(encoding="utf-8"))) is None:
        if process.poll() is not None:
            raise SystemExit(log.read_text(encoding="utf-8"))
        time.sleep(0.1)
    return process, f"http://127.0.0.1:{found[1]}", time.perf_counter() - began


def questions(http: httpx.Client, vocabulary: list[str], items: int) -> dict[str, Callable[[], Any]]:
    """What is measured, by name."""
    r = random.Random(0)

    def key() -> str:
        return f"P{r.randrange(items):08d}"

    def get(path: str, **params: Any) -> Any:
        return http.get(path, params=params).raise_for_status().json()

    def post(path: str, body: Any) -> Any:
        return http.post(path, json=body).raise_for_status().json()

    def history() -> list[str]:
        return [key() for _ in range(r.randrange(1, 11))]

    count = iter(range(10**9))
    return {
        "search, first items": lambda: get("/v1/items", limit=30),
        "search, frequent word": lambda: get("/v1/items", limit=30, search=r.choice(vocabulary[:20])),
        "search, rare word": lambda: get("/v1/items", limit=30, search=r.choice(vocabulary[-1000:])),
        "search, two words": lambda: get(
            "/v1/items", limit=30, search=f"{r.choice(vocabulary[:200])} {r.choice(vocabulary[:200])}"
        ),
        "search, item id": lambda: get("/v1/items", limit=30, search=key()),
        "search, nothing to find": lambda: get("/v1/items", limit=30, search="no such words"),
        "about": lambda: get("/v1/about"),
        "path": lambda: get("/v1/path", key=key()),
        "similar": lambda: post("/v1/similar", {"item": key(), "k": 8}),
        "health of the identifiers": lambda: get("/v1/health"),
        "recommend": lambda: post("/v1/recommend", {"history": history()}),
        "recommend in a category": lambda: post(
            "/v1/recommend", {"history": history(), "filter": {"categories": [f"Kind {r.randrange(300)}"]}}
        ),
        "add": lambda: post(
            "/v1/items", {"items": [{"key": f"N{next(count)}", "title": "Zen mel korilider"}]}
        ),
    }


def page(address: str, name: str, word: str) -> None:
    """Seconds until the page shows items, an item with its path, and recommendations, in a real browser."""
    from selenium import webdriver
    from selenium.common.exceptions import StaleElementReferenceException
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium") or shutil.which("google-chrome"))
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1000"):
        options.add_argument(argument)
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    chromedriver = os.environ.get("CHROMEDRIVER") or shutil.which("chromedriver")
    driver: Any = webdriver.Chrome(options=options, service=Service(chromedriver))
    try:

        def until(selector: str, least: int) -> float:
            began = time.perf_counter()
            waiting = WebDriverWait(driver, 120, poll_frequency=0.02)
            waiting.until(lambda d: len(d.find_elements(By.CSS_SELECTOR, selector)) >= least)
            return time.perf_counter() - began

        def names(shown: Any) -> list[Any]:
            return list(shown.find_elements(By.CSS_SELECTOR, "#found .name"))

        driver.get(address)
        print(f"  page: {until('#found li', 30):.2f} s until the first items after it was loaded")
        driver.find_element(By.ID, "search").send_keys(word)
        began = time.perf_counter()
        waiting = WebDriverWait(driver, 120, 0.02, [StaleElementReferenceException])
        waiting.until(lambda d: all(word in e.text.casefold() for e in names(d)) and names(d))
        print(f"  page: {time.perf_counter() - began:.2f} s until a search shows what it found")
        driver.get(f"{address}/#explore/{name}")
        print(f"  page: {until('.path > li', 4):.2f} s until an item has its path")
        driver.find_element(By.CSS_SELECTOR, "#item p button").click()
        driver.get(f"{address}/#recommend")
        print(f"  page: {until('#recommended .steps', 10):.2f} s until 10 recommendations")
        driver.get(f"{address}/#health")
        print(f"  page: {until('#health table', 1):.2f} s until the tokenizer's health")
        wrong = [line["message"] for line in driver.get_log("browser") if line["level"] == "SEVERE"]
        print(f"  page: {len(wrong)} errors in its console {wrong[:3]}")
    finally:
        driver.quit()


def main() -> None:
    """Make, start, ask."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--times", type=int, default=30, help="that each question is asked")
    parser.add_argument("--folder", type=Path, default=Path("runs/serve-items"))
    parser.add_argument("--page", action="store_true", help="also the page in Chromium, through selenium")
    parser.add_argument("--record", type=Path, help="benchmark ledger to append to")
    options = parser.parse_args()

    def record(name: str, value: float, unit: str) -> None:
        if options.record is not None:
            full = f"serve/{options.items:,}-items-{name.replace(', ', '-').replace(' ', '-')}"
            values = {"name": full, "value": round(value, 2), "unit": unit}
            append(options.record, BenchmarkLine.parse(values, "serve"))

    began = time.perf_counter()
    vocabulary = make_bundle(options.folder / "made-up", options.items)
    print(f"{options.items:,} items made in {time.perf_counter() - began:.0f} s", flush=True)
    store = options.folder / "store.sqlite"
    for left in options.folder.glob("store.sqlite*"):
        left.unlink()
    for name in ("first start", "start"):
        process, address, seconds = started(options.folder / "made-up", store)
        held = Process.of(process.pid)
        print(f"{name}: {seconds:.1f} s, {held.mib:,.0f} MiB", flush=True)
        record(name, seconds, "s")
        if name == "first start":
            process.terminate()
            process.wait()
    try:
        with httpx.Client(base_url=address, timeout=120, trust_env=False) as http:
            asked = questions(http, vocabulary, options.items)
            change = iter(range(10**9))
            print(
                f"{'':28} {'first ms':>9} {'p50 ms':>8} {'p99 ms':>8}   after a change each: p50 ms, p99 ms"
            )
            for name, ask in asked.items():
                fresh, stale = list[float](), list[float]()
                for seconds_of, changed in ((fresh, False), (stale, True)):
                    for _ in range(options.times + (not changed)):
                        if changed:
                            body = {"attributes": {"price": float(next(change))}}
                            http.patch("/v1/items/P00000000", json=body).raise_for_status()
                        start = time.perf_counter()
                        ask()
                        seconds_of.append(1000 * (time.perf_counter() - start))
                p50, p99 = np.quantile(fresh[1:], (0.5, 0.99))
                late50, late99 = np.quantile(stale, (0.5, 0.99))
                print(
                    f"{name:28} {fresh[0]:9.1f} {p50:8.1f} {p99:8.1f} {late50:22.1f} {late99:8.1f}",
                    flush=True,
                )
                record(f"{name}-p50", float(p50), "ms")
                record(f"{name}-p99", float(p99), "ms")
                record(f"{name}-after-a-change-p50", float(late50), "ms")
        held = Process.of(process.pid)
        print(f"afterwards: {held.mib:,.0f} MiB, {held.threads} threads; load {os.getloadavg()[0]:.1f}")
        record("memory", held.mib, "MiB")
        if options.page:
            page(address, "P00000007", vocabulary[-1])
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    main()
