"""Prove that nothing that a live catalogue acknowledged is lost, whenever its processes are killed.

    python scripts/kill_serving.py BUNDLE                              # SQLite, 200 kills
    python scripts/kill_serving.py BUNDLE --database postgresql        # a private cluster of this machine
    python scripts/kill_serving.py BUNDLE --database postgresql --victim database

Every round, replicas on one store add, update and remove items in several threads each, until SIGKILL ends
them all at a seeded random moment (``--victim database``: until it ends the database, which is started
again). What each said that it was about to do, and what was acknowledged, is told to this process line by
line. Then the store is opened again and compared:

- every acknowledged change is there, under the number and with the identifier that were acknowledged;
- a change that was under way is there as a whole, or not at all;
- no identifier has two owners, no number another key, and no item another identifier than ever before;
- the revision is at least every one that was acknowledged.

Prints one line a round and a summary; exits with 1 when anything is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from catalex.bundle import Bundle
from catalex.serving.catalogue import LiveCatalogue
from catalex.serving.connection import StoreUnavailableError
from catalex.serving.items import NewItem
from catalex.serving.store import Store

ROOT = Path(__file__).resolve().parents[1]
WORDS = ("red", "blue", "mug", "bag", "light", "heart", "paper", "tin", "clock", "bird", "cake", "retrospot")

MOST = 30
"""Items that a thread keeps, so that small code spaces do for any number of rounds."""


@dataclass
class Known:
    """What was acknowledged of one item. `price` is None where it has none."""

    number: int
    identifier: tuple[int, ...]
    price: float | None


@dataclass
class Truth:
    """What must be in the store.

    Attributes:
        live: Acknowledged items by key.
        pending: Changes that were under way when the process died: by key what they wanted.
        numbers: Key and identifier of every number ever seen.
        revision: The highest that was acknowledged.
        errors: Refusals that no change should have met.
    """

    live: dict[str, Known] = field(default_factory=dict)
    pending: dict[str, dict[str, Any]] = field(default_factory=dict)
    numbers: dict[int, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    revision: int = 0
    errors: list[str] = field(default_factory=list)

    def hear(self, line: dict[str, Any]) -> None:
        """Note what a replica said: the begin of a change, or its acknowledgement."""
        keys = line["keys"]
        if line["say"] == "error":
            self.errors.append(line["error"])
            return
        if line["say"] == "begin":
            self.pending.update(dict.fromkeys(keys, line))
            return
        for key in keys:
            self.pending.pop(key, None)
        self.revision = max(self.revision, line["revision"])
        if line["do"] == "remove":
            for key in keys:
                self.live.pop(key, None)
        for key, number, identifier, price in line.get("items", []):
            self.live[key] = Known(number, tuple(identifier), price)

    def compare(self, found: LiveCatalogue) -> list[str]:
        """Everything that is wrong with a reopened catalogue; what was under way counts as it turned out."""
        wrong = [f"refused: {error}" for error in self.errors]
        self.errors.clear()
        if found.revision < self.revision:
            wrong.append(f"revision {found.revision}, acknowledged {self.revision}")
        for key, known in list(self.live.items()):
            item, want = found.get(key), self.pending.get(key)
            if item is None:
                if want is None or want["do"] != "remove":
                    wrong.append(f"lost: {key}")
                del self.live[key]
                continue
            if (item.number, item.identifier) != (known.number, known.identifier):
                wrong.append(f"moved: {key} from {known} to {item.number} {item.identifier}")
            price = item.attributes.get("price")
            if price != known.price and not (want and want["do"] == "update" and want["price"] == price):
                wrong.append(f"change lost: {key} has price {price}, acknowledged {known.price}")
            known.price = price
        halves: dict[str, list[bool]] = {}
        for key, want in self.pending.items():
            if want["do"] == "add":
                halves.setdefault(json.dumps(want["keys"]), []).append(found.get(key) is not None)
        wrong += [f"half applied: {keys}" for keys, there in halves.items() if len(set(there)) > 1]
        self.pending.clear()
        owners: dict[tuple[int, ...], str] = {}
        for item in found:
            if item.identifier in owners:
                wrong.append(f"duplicated: {item.identifier} of {owners[item.identifier]} and {item.key}")
            owners[item.identifier] = item.key
            before = self.numbers.setdefault(item.number, (item.key, item.identifier))
            if before != (item.key, item.identifier):
                wrong.append(f"number {item.number}: {before} became {item.key} {item.identifier}")
            if item.key.startswith("kill-"):
                price = item.attributes.get("price")
                self.live.setdefault(item.key, Known(item.number, item.identifier, price))
        return wrong


# --- a replica ----------------------------------------------------------------------------------------------


def replica(
    bundle: Bundle, url: str, pipe: int, name: str, owned: list[str], threads: int, seed: int
) -> None:
    """Change the catalogue for ever; never returns."""
    live = LiveCatalogue.open(bundle, Store.open(url))
    live.follow(0.05)
    live.tokenize("encoder and tokenizer are loaded when they are first used")
    say(pipe, {"say": "ready"})
    workers = []
    for place in range(threads):
        rng = random.Random(f"{seed} {name} {place}")
        own = (live, pipe, f"{name}-{place}", owned[place::threads], rng)
        workers.append(threading.Thread(target=work, args=own))
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def work(live: LiveCatalogue, pipe: int, name: str, owned: list[str], rng: random.Random) -> None:
    """One thread's changes, each told before and after. It alone changes the items that it owns.

    After an error of the database the thread ends: its change is under way for good.
    """
    owned = list(owned)
    for count in range(10**9):
        weights = [5, 3, 2] if len(owned) < MOST else [0, 1, 2]
        kind = rng.choices(["add", "update", "remove"], weights)[0] if owned else "add"
        try:
            if kind == "add":
                keys = [f"kill-{name}-{count}-{i}" for i in range(rng.choice([1, 1, 1, 3]))]
                say(pipe, {"say": "begin", "do": "add", "keys": keys})
                new = [
                    NewItem(key, title=" ".join(rng.choices(WORDS, k=3)), attributes={"price": 1.0})
                    for key in keys
                ]
                items = live.add(new)
                owned += keys
            elif kind == "update":
                keys, price = [rng.choice(owned)], float(rng.randrange(1000))
                say(pipe, {"say": "begin", "do": "update", "keys": keys, "price": price})
                items = [live.update(keys[0], attributes={"price": price}, in_stock=rng.random() < 0.5)]
            else:
                keys = [owned.pop(rng.randrange(len(owned)))]
                say(pipe, {"say": "begin", "do": "remove", "keys": keys})
                live.remove(keys[0])
                items = []
        except StoreUnavailableError:
            return
        except Exception as error:
            say(pipe, {"say": "error", "keys": [], "error": repr(error)[:500]})
            raise
        told = [(i.key, i.number, i.identifier, i.attributes.get("price")) for i in items]
        done = {"say": "done", "do": kind, "keys": keys, "items": told}
        say(pipe, {**done, "revision": live.revision})


def say(pipe: int, line: dict[str, Any]) -> None:
    """One line to the observer; shorter than what a pipe takes whole."""
    data = json.dumps(line).encode() + b"\n"
    assert len(data) <= select.PIPE_BUF
    os.write(pipe, data)


# --- the observer -------------------------------------------------------------------------------------------


@contextmanager
def database(kind: str, folder: Path) -> Iterator[tuple[str, Any]]:
    """Address of an empty store, and the cluster behind it where there is one."""
    if kind == "sqlite":
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        yield f"sqlite:///{folder / 'store.db'}", None
        return
    sys.path.insert(0, str(ROOT / "tests"))
    from support.postgres import Cluster

    with Cluster() as cluster:
        yield cluster.fresh(), cluster


def round_of(
    bundle: Bundle, url: str, cluster: Any, truth: Truth, given: argparse.Namespace, number: int
) -> tuple[list[str], int, float]:
    """Load, kill, reopen; returns what is wrong, the acknowledged changes, and seconds until served again."""
    rng = random.Random(f"{given.seed} {number}")
    owned = sorted(truth.live)
    reader, writer = os.pipe()
    children = []
    for place in range(given.replicas):
        child = os.fork()
        if not child:
            os.close(reader)
            try:
                replica(
                    bundle,
                    url,
                    writer,
                    f"{number}-{place}",
                    owned[place :: given.replicas],
                    given.threads,
                    given.seed,
                )
            finally:
                os._exit(1)
        children.append(child)
    os.close(writer)
    lines = os.fdopen(reader, encoding="utf-8")
    ready = done = 0
    timer = None
    for text in lines:  # until all who could write are dead
        line = json.loads(text)
        if line["say"] == "ready":
            ready += 1
            if ready == given.replicas:
                delay = rng.uniform(0.01, given.longest)
                timer = threading.Timer(
                    delay, kill, (children, cluster if given.victim == "database" else None)
                )
                timer.start()  # fmt: skip
            continue
        truth.hear(line)
        done += line["say"] == "done"
    for child in children:
        os.waitpid(child, 0)
    if timer is not None:
        timer.join()
    began = time.monotonic()
    if cluster is not None and given.victim == "database":
        cluster.start()
    live = LiveCatalogue.open(bundle, Store.open(url))
    seconds = time.monotonic() - began
    wrong = truth.compare(live)
    with live.store.reading() as connection:
        if connection.dialect.name == "sqlite" and number % 20 == 0:
            verdict = connection.exec_driver_sql("PRAGMA integrity_check").scalar()
            wrong += [] if verdict == "ok" else [f"integrity: {verdict}"]
    live.close()
    if ready < given.replicas:
        wrong.append("a replica did not start")
    return wrong, done, seconds


def kill(children: Sequence[int], cluster: Any) -> None:
    """SIGKILL to the database first where it is the victim, to the replicas after their threads met it."""
    if cluster is not None:
        cluster.kill()
        time.sleep(0.05)
    for child in children:
        with suppress(ProcessLookupError):  # without a database it may have ended by itself
            os.kill(child, signal.SIGKILL)


def main(arguments: Sequence[str] | None = None) -> int:
    """Rounds of load and kill; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--victim", choices=["replicas", "database"], default="replicas")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--threads", type=int, default=3, help="that write, in each replica")
    parser.add_argument("--longest", type=float, default=0.5, help="seconds of load before the kill, at most")
    parser.add_argument("--seed", type=int, default=0, help="of the load and the kill moments")
    parser.add_argument("--folder", type=Path, default=Path("runs/kill-serving"), help="emptied first")
    given = parser.parse_args(arguments)
    if given.victim == "database" and given.database == "sqlite":
        parser.error("SQLite is no process of its own: --victim database needs --database postgresql")
    bundle = Bundle.load(given.bundle)
    truth, failures, changes, slowest = Truth(), 0, 0, 0.0
    with database(given.database, given.folder) as (url, cluster):
        first = LiveCatalogue.open(bundle, Store.open(url))
        truth.compare(first)
        first.close()
        for number in range(1, given.kills + 1):
            wrong, done, seconds = round_of(bundle, url, cluster, truth, given, number)
            failures, changes, slowest = failures + len(wrong), changes + done, max(slowest, seconds)
            if number % 10 == 0 or wrong:
                print(f"kill {number:3}: {done:4} changes acknowledged, {len(truth.live):5} items added and "
                      f"live, served again after {seconds:.2f} s", flush=True)  # fmt: skip
            for sentence in wrong:
                print(f"  WRONG: {sentence}", flush=True)
    print(f"{given.database}, victim {given.victim}: {given.kills} kills, {changes:,} acknowledged changes, "
          f"{failures} lost, moved or duplicated; at most {slowest:.2f} s until served again")  # fmt: skip
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
