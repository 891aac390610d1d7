"""Show that two services on one PostgreSQL tell the same, a second later at the latest, whatever befalls it.

    python scripts/replicas.py BUNDLE                      # a private cluster of this machine
    python scripts/replicas.py BUNDLE --changes 300 --seed 1

Two processes of ``catalex serve`` share one database. Items are added, taken out of stock and removed through
one, in turns, and the other is asked again and again until it tells of it: found by its id and by a search,
recommended (within a category of its own), read as a history. Measured is the time from the acknowledgement
by the one to the first right answer of the other. Then the database is stopped in an orderly way, and once by
SIGKILL, under a load of adds through both, and started again: meanwhile both must go on recommending, refuse
changes with 503, and say at ``/ready`` that the store is away; afterwards both must come back by themselves,
hold every acknowledged item with the same identifier, and be as quick as before.

Prints the distribution of the times in milliseconds; exits with 1 when one is above ``--limit`` or anything
is lost or differs.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
ADDRESS = re.compile(r"catalex answers at http://localhost:(\d+)")
WORDS = ("red", "blue", "mug", "bag", "light", "heart", "paper", "tin", "clock", "bird", "cake", "retrospot")
PAUSE = 0.05
"""Seconds between two adds of a writer: a quick machine would fill the identifiers of a small catalogue."""
PATIENCE = 20.0
"""Seconds after which a change counts as never seen."""
STALE = 1.0
"""Seconds without the store after which the services are to say that they are not ready."""


class Replica:
    """One service as a process."""

    def __init__(self, bundle: Path, store: str) -> None:
        command = [sys.executable, "-m", "catalex", "serve", str(bundle), "--port", "0", "--store", store]
        self.process = subprocess.Popen(
            [*command, "--set", f"stale={STALE}"],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.lines: list[str] = []
        self._told = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def wait(self) -> None:
        """Until it answers."""
        self._told.wait(120)
        found = ADDRESS.search("".join(self.lines))
        if found is None:
            raise SystemExit("the service did not start:\n" + "".join(self.lines))
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{found[1]}", timeout=60, trust_env=False)

    def close(self) -> None:
        """End it gracefully; anything but status 0 is an error."""
        self.process.terminate()
        status = self.process.wait(30)
        self._reader.join()
        assert status == 0, "".join(self.lines[-20:])

    def ask(self, path: str, body: Any) -> Any:
        answer = self.http.post(path, json=body)
        return answer.json() if answer.status_code == 200 else None

    def there(self, key: str) -> bool:
        return self.http.get(f"/v1/items/{key}").status_code == 200

    def searched(self, key: str) -> bool:
        found = self.http.get("/v1/items", params={"search": key}).json()["items"]
        return [item["key"] for item in found] == [key]

    def recommended(self, known: str, key: str, *, in_stock: bool = False) -> bool:
        """Each item has a category of its own, so that the model has no choice."""
        body = {"history": [known], "k": 1, "filter": {"categories": [key], "in_stock": in_stock}}
        answer = self.ask("/v1/recommend", body)
        return answer is not None and [item["key"] for item in answer["items"]] == [key]

    def read(self, key: str) -> bool:
        return self.ask("/v1/recommend", {"history": [key], "k": 1}) is not None

    def ready(self) -> tuple[int, str]:
        """Status of ``/ready`` and what it says of the store."""
        answer = self.http.get("/ready")
        return answer.status_code, answer.json().get("store", "")

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines = [*self.lines[-200:], line]
            if ADDRESS.search(line):
                self._told.set()
        self._told.set()


def add(replica: Replica, key: str, r: random.Random) -> httpx.Response:
    title = " ".join(r.choices(WORDS, k=4))
    item = {"key": key, "title": f"{title} {key}", "text": title, "categories": [key]}
    return replica.http.post("/v1/items", json={"items": [item]})


def until_all(replicas: Sequence[Replica], wanted: Callable[[tuple[int, str]], bool], began: float) -> float:
    """Seconds since `began` until every replica has said at ``/ready`` what is wanted."""
    for replica in replicas:
        while not wanted(replica.ready()):
            if time.perf_counter() - began > PATIENCE:
                return float("inf")
            time.sleep(0.002)
    return time.perf_counter() - began


class Times:
    """Seconds by what was looked for."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def watch(self, wanted: dict[str, Callable[[], bool]]) -> None:
        """Wait for all conditions at once, one after another asked in turns."""
        began, missing = time.perf_counter(), dict(wanted)
        while missing and time.perf_counter() - began < PATIENCE:
            for name in list(missing):
                if missing[name]():
                    del missing[name]
                    self.seconds.setdefault(name, []).append(time.perf_counter() - began)
            time.sleep(0.002)
        for name in missing:
            self.seconds.setdefault(name, []).append(float("inf"))

    def tell(self, title: str) -> float:
        """Print; the largest."""
        print(f"{title:38} {'n':>5} {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8}")
        for name, found in self.seconds.items():
            p50, p99, most = 1000 * np.quantile(found, (0.5, 0.99, 1.0), method="higher")
            print(f"  {name:36} {len(found):5} {p50:8.0f} {p99:8.0f} {most:8.0f}", flush=True)
        return max(max(found) for found in self.seconds.values())


def follow(replicas: Sequence[Replica], known: str, changes: int, name: str, r: random.Random) -> Times:
    """Change through one, look at the other, in turns; every item is added, out of stock, and removed."""
    times = Times()
    for count in range(changes):
        one, other = replicas if count % 2 == 0 else replicas[::-1]
        key = f"follow-{name}-{count:04d}"
        follow_one(one, other, known, key, times, r, removed=bool(count % 3))
    return times


def follow_one(
    one: Replica, other: Replica, known: str, key: str, times: Times, r: random.Random, *, removed: bool
) -> None:
    """The life of one item, changed through `one` and looked for at the other."""
    path = f"/v1/items/{key}"
    assert add(one, key, r).status_code == 201
    times.watch(
        {
            "added: found by its id": lambda: other.there(key),
            "added: found by a search": lambda: other.searched(key),
            "added: recommended": lambda: other.recommended(known, key),
            "added: read as a history": lambda: other.read(key),
        }
    )
    assert one.http.patch(path, json={"in_stock": False}).status_code == 200
    times.watch({"stock: no longer": lambda: not other.recommended(known, key, in_stock=True)})
    assert one.http.patch(path, json={"in_stock": True}).status_code == 200
    times.watch({"stock: again": lambda: other.recommended(known, key, in_stock=True)})
    if removed:
        assert one.http.delete(path).status_code == 200
        times.watch(
            {
                "removed: not found": lambda: not other.there(key),
                "removed: not recommended": lambda: not other.recommended(known, key),
            }
        )


def outage(
    replicas: Sequence[Replica], cluster: Any, known: str, seconds: float, name: str, *, kill: bool
) -> tuple[list[str], dict[str, list[int]]]:
    """Take the database away under load and bring it back; what went wrong, and what was acknowledged."""
    wrong: list[str] = []
    acknowledged: dict[str, list[int]] = {}
    refused = [0]
    over = threading.Event()

    def write(replica: Replica, own: str) -> None:
        r = random.Random(own)
        for count in range(10**6):
            if over.is_set():
                return
            answer = add(replica, f"{own}{count}", r)
            if answer.status_code == 201:
                acknowledged[f"{own}{count}"] = answer.json()["items"][0]["identifier"]
                time.sleep(PAUSE)
            elif answer.status_code == 503:
                refused[0] += 1
                time.sleep(0.02)
            else:
                wrong.append(f"a write was answered {answer.status_code}: {answer.text[:200]}")

    writers = [
        threading.Thread(target=write, args=(replica, f"{name}-{place}-"))
        for place, replica in enumerate(replicas)
    ]
    for writer in writers:
        writer.start()
    time.sleep(1.0)
    gone = time.perf_counter()
    (cluster.kill if kill else cluster.stop)()
    told = until_all(replicas, lambda ready: ready != (200, "answers"), gone)
    turned = until_all(replicas, lambda ready: ready[0] == 503, gone)
    while time.perf_counter() - gone < seconds:
        for replica in replicas:
            if not replica.read(known):
                wrong.append("no recommendation while the database was away")
            if replica.ready()[0] != 503:
                wrong.append("ready while the database was away")
    before = len(acknowledged)
    recovery = cluster.start()
    back = time.perf_counter()
    came = until_all(replicas, lambda ready: ready == (200, "answers"), back)
    time.sleep(1.0)
    over.set()
    for writer in writers:
        writer.join()
    if len(acknowledged) == before:
        wrong.append("no write succeeded after the database was back")
    if not refused[0]:
        wrong.append("no write was refused, so nothing was shown")
    how = "killed" if kill else "stopped"
    print(
        f"database {how} for {seconds:.0f} s, up again in {recovery:.2f} s: said to be away after "
        f"{1000 * told:.0f} ms, not ready after {1000 * turned:.0f} ms, ready again "
        f"{1000 * came:.0f} ms after the start; {len(acknowledged)} adds acknowledged, {refused[0]} refused",
        flush=True,
    )
    return wrong, acknowledged


def compare(replicas: Sequence[Replica], acknowledged: dict[str, list[int]]) -> list[str]:
    """What was acknowledged and is missing or moved, and where the replicas differ."""
    time.sleep(1.0)
    wrong = []
    for key, identifier in acknowledged.items():
        for place, replica in enumerate(replicas):
            answer = replica.http.get(f"/v1/items/{key}")
            if answer.status_code != 200 or answer.json()["identifier"] != identifier:
                wrong.append(f"replica {place}: {key} is lost or moved")
    told = [(a["items"], a["revision"]) for a in (r.http.get("/v1/about").json() for r in replicas)]
    if told[0] != told[1]:
        wrong.append(f"items and revision differ: {told}")
    return wrong


@contextmanager
def two(bundle: Path) -> Iterator[tuple[list[Replica], Any]]:
    """Two services and the cluster behind them."""
    sys.path.insert(0, str(ROOT / "tests"))
    from support.postgres import Cluster

    with Cluster() as cluster, ExitStack() as stack:
        url = cluster.fresh()
        replicas = []
        for _ in range(2):  # at once: the first seeds the store, the other waits for it
            replicas.append(Replica(bundle, url))
            stack.callback(replicas[-1].close)
        for replica in replicas:
            replica.wait()
        yield replicas, cluster


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--changes", type=int, default=120, help="items that are followed, in all")
    parser.add_argument("--outage", type=float, default=4.0, help="seconds that the database is away")
    parser.add_argument("--limit", type=float, default=1.0, help="seconds that a change may take to be seen")
    parser.add_argument("--seed", type=int, default=0, help="of the titles")
    given = parser.parse_args(arguments)
    r, wrong, acknowledged = random.Random(given.seed), list[str](), dict[str, list[int]]()
    with two(given.bundle) as (replicas, cluster):
        known = replicas[0].http.get("/v1/items?limit=1").json()["items"][0]["key"]
        half = max(given.changes // 2, 1)
        worst = follow(replicas, known, half, "a", r).tell("before the outages")
        for kill in (False, True):
            found, held = outage(
                replicas, cluster, known, given.outage, "killed" if kill else "stopped", kill=kill
            )
            wrong += found
            acknowledged.update(held)
        wrong += compare(replicas, acknowledged)
        worst = max(worst, follow(replicas, known, half, "b", r).tell("after the outages"))
    for sentence in wrong[:20]:
        print(f"WRONG: {sentence}")
    print(
        f"{2 * half} items followed, at most {1000 * worst:.0f} ms; {len(acknowledged)} acknowledged around "
        f"two outages, {len(wrong)} lost, moved or otherwise wrong"
    )
    return int(bool(wrong) or worst > given.limit)


if __name__ == "__main__":
    sys.exit(main())
