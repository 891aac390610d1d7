"""`fetch_images`: the images of many items, in parallel over hosts, into ``images.parquet``."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from urllib.parse import urlsplit

from catalex.artifacts import write_text
from catalex.data.columns import IMAGES_FILE, ITEM_ID
from catalex.data.download import USER_AGENT
from catalex.data.images.addresses import FetchError, Host, ImageOptions, Picture, fetch_one, local_path
from catalex.data.images.partial import PARTIAL_FILE, open_partial, write_images
from catalex.errors import require, user_error
from catalex.progress import Track, say

FAILURES_FILE = "failures.jsonl"


@dataclass(frozen=True)
class ImageReport:
    """What `fetch_images` did, in items.

    Attributes:
        fetched: Items whose image was fetched by this call.
        kept: Items whose image was there from an earlier call.
        failed: Items without an image; `failures` lists them with reasons.
        images: The written ``images.parquet``.
        failures: ``failures.jsonl``, or None when nothing failed.
    """

    fetched: int
    kept: int
    failed: int
    images: Path
    failures: Path | None


def fetch_images(
    items: Iterable[tuple[int, str]],
    folder: Path,
    options: ImageOptions | None = None,
    *,
    allow_local: bool = False,
) -> ImageReport:
    """Fetch the images of items and write ``images.parquet``. Failures are listed, never fatal.

    A killed run continues where it was: finished images wait in ``images.partial.sqlite``. A later run
    fetches only what is new or failed. Items that share an address share one request. Afterwards
    ``images.parquet`` holds the given items and no others.

    Args:
        items: Pairs of item id and address (http, https).
        folder: Where the files go, normally the canonical domain folder.
        options: Sizes, limits and manners; None for the defaults.
        allow_local: Accept ``file://`` addresses and plain paths too. Off by default, since a catalogue from
            elsewhere could otherwise name any file of this machine.

    Raises:
        CatalexError: When an item occurs twice, an id does not fit, a package is missing, or the folder
            cannot be written.
    """
    require("httpx", "download")
    require("PIL", "images")
    chosen = options or ImageOptions()
    wanted = _check_items(items)
    images = folder / IMAGES_FILE
    folder.mkdir(parents=True, exist_ok=True)
    with closing(open_partial(folder)) as store:
        present = {address for (address,) in store.execute("SELECT source FROM images")}
        local = {a for a in set(wanted.values()) if local_path(a) is not None}
        todo = set(wanted.values()) - (present - local)
        failed = _fetch_all(sorted(todo), store, chosen, allow_local)
        lost = {item: failed[address] for item, address in wanted.items() if address in failed}
        write_images(images, wanted, set(lost), store)
    _write_failures(folder / FAILURES_FILE, wanted, lost)
    if not lost:
        (folder / PARTIAL_FILE).unlink(missing_ok=True)
    failures = folder / FAILURES_FILE if lost else None
    if failures is not None:
        say(f"{len(lost):,} of {len(wanted):,} images failed; the next run tries them again: {failures}")
    fetched = sum(address in todo for address in wanted.values()) - len(lost)
    return ImageReport(fetched, len(wanted) - fetched - len(lost), len(lost), images, failures)


def _check_items(items: Iterable[tuple[int, str]]) -> dict[int, str]:
    """Item id to address, ascending by id."""
    wanted: dict[int, str] = {}
    for item, address in items:
        if item in wanted:
            raise user_error("an item has two images", value=item, remedy="pass one address for each item")
        if not 0 <= item < 2**31:
            raise user_error("not an item id", value=item, allowed="0 to 2147483647")
        wanted[int(item)] = (address or "").strip()
    return dict(sorted(wanted.items()))


def _fetch_all(
    todo: list[str], store: sqlite3.Connection, options: ImageOptions, allow_local: bool
) -> dict[str, str]:
    """Fetch addresses in parallel into the partial store; the reasons of those that failed.

    Every host has its own queue, worked off by at most `per_host` threads: a slow host delays only itself.
    This thread alone writes, once for a handful of images.
    """
    import httpx

    hosts: dict[str, Host] = defaultdict(lambda: Host(options.interval))
    for address in todo:
        local = local_path(address) is not None
        hosts["" if local else urlsplit(address).netloc.lower()].addresses.append(address)
    if "" in hosts:
        hosts[""].interval = 0.0
    results: Queue[tuple[str, Picture | str]] = Queue(maxsize=4 * options.workers)
    stop = threading.Event()
    failed: dict[str, str] = {}
    client = httpx.Client(follow_redirects=True, timeout=options.timeout, headers={"User-Agent": USER_AGENT})

    def work(host: Host) -> None:
        while not stop.is_set():
            try:
                address = host.addresses.popleft()
            except IndexError:
                return
            try:
                outcome: Picture | str = fetch_one(address, host, client, options, allow_local, stop)
            except FetchError as error:
                outcome = str(error)
            results.put((address, outcome))

    with (
        client,
        ThreadPoolExecutor(options.workers) as pool,
        Track("fetch images", len(todo), "images") as track,
    ):
        lanes: list[Future[None]] = []
        try:
            for host in hosts.values():
                lanes += [pool.submit(work, host) for _ in range(min(options.per_host, len(host.addresses)))]
            for count in range(1, len(todo) + 1):
                address, outcome = _next_result(results, lanes)
                if isinstance(outcome, str):
                    failed[address] = outcome
                else:
                    row = (address, outcome.jpeg, outcome.width, outcome.height)
                    store.execute("INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?)", row)
                if count % 16 == 0 or results.empty():
                    store.commit()
                track.advance(1, note=f"{len(failed):,} failed" if failed else None)
        finally:
            stop.set()
            store.commit()
            while any(not lane.done() for lane in lanes):
                _drain(results)
                time.sleep(0.01)
    return failed


def _next_result(
    results: Queue[tuple[str, Picture | str]], lanes: list[Future[None]]
) -> tuple[str, Picture | str]:
    """The next outcome; an unforeseen error of a worker is raised here instead of waiting for ever."""
    while True:
        try:
            return results.get(timeout=0.5)
        except Empty:
            for lane in lanes:
                if lane.done():
                    lane.result()


def _drain(results: Queue[tuple[str, Picture | str]]) -> None:
    """Free workers that wait to deliver."""
    while True:
        try:
            results.get_nowait()
        except Empty:
            return


def _write_failures(path: Path, wanted: Mapping[int, str], lost: Mapping[int, str]) -> None:
    if not lost:
        path.unlink(missing_ok=True)
        return
    lines = [
        json.dumps({ITEM_ID: item, "address": wanted[item], "reason": reason}, ensure_ascii=False)
        for item, reason in lost.items()
    ]
    write_text(path, "\n".join(lines) + "\n")
