"""Item images: safe decoding, polite fetching, and reading them back by item.

`fetch_images` turns addresses into ``images.parquet``, the image file of the canonical domain folder;
`ImageStore` reads that file. Whatever comes from the network passes through `decode_image` and is encoded
anew, so that nothing but small, plain JPEGs ever enters a domain.
"""

from __future__ import annotations

import io
import json
import sqlite3
import threading
import time
import warnings
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from catalex.artifacts import atomic_path, read_parquet, write_text
from catalex.data.columns import IMAGES_FILE, ITEM_ID
from catalex.data.download import BUSY_STATUSES, MAX_WAIT, USER_AGENT, asked_wait, check_address, require
from catalex.errors import CatalexError, user_error
from catalex.options import Options
from catalex.progress import Track, say
from catalex.types import Ints

if TYPE_CHECKING:
    import httpx
    from PIL.Image import Image

MAX_PIXELS = 50_000_000
"""Pixels of the largest image that is decoded: above any product photo, at most 150 MB in memory as RGB."""

MAX_BYTES = 32 * 1024 * 1024
"""Bytes of the largest image file that is accepted."""

FORMATS = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")
"""What shops publish. Pillow knows dozens more; each is attack surface (EPS even starts Ghostscript)."""

_TYPES: dict[str, Any] = {
    ITEM_ID: pa.int32(),
    "jpeg": pa.binary(),
    "width": pa.int32(),
    "height": pa.int32(),
    "source": pa.string(),
}
IMAGES_SCHEMA = pa.schema(_TYPES)
"""Columns of ``images.parquet``: one row an item with an image, in order of item; `source` is its address."""

FAILURES_FILE = "failures.jsonl"
PARTIAL_FILE = "images.partial.sqlite"
ROWS_PER_GROUP = 256
"""Rows of a Parquet row group: what one random access reads (about 2 MB of small JPEGs)."""


# --- decoding -----------------------------------------------------------------------------------------------

_WARNINGS = threading.Lock()
"""`warnings.catch_warnings` changes the whole process, so only one thread at a time may be inside it."""


def decode_image(
    data: bytes, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES, size: int | None = None
) -> Image:
    """Decode an untrusted image to upright RGB.

    The size is read from the header and checked before any pixel is decoded. Of an animation the first frame
    is taken; transparency becomes white; the EXIF orientation is applied; 16-bit values are scaled to 8.

    Args:
        data: The file's bytes, of one of `FORMATS`.
        max_pixels: Largest width x height that is decoded.
        max_bytes: Largest file.
        size: Longest side of the result in pixels, or None to keep the size; images are never enlarged.

    Raises:
        CatalexError: With the reason, when the bytes are not a whole image within the limits.
    """
    require("PIL", "images")
    import PIL
    import PIL.Image
    from PIL import ImageOps

    if not data:
        raise user_error("the image file is empty")
    if len(data) > max_bytes:
        raise user_error(
            "the image file is too large", value=len(data), allowed=f"at most {max_bytes:,} bytes"
        )
    PIL.Image.init()
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with PIL.Image.open(
                io.BytesIO(data), formats=[name for name in FORMATS if name in PIL.Image.OPEN]
            ) as image:
                if image.width * image.height > max_pixels:
                    raise user_error(
                        "the image has too many pixels",
                        value=f"{image.width} x {image.height}",
                        allowed=f"at most {max_pixels:,}",
                    )
                if size is not None:
                    # JPEG can be decoded at a fraction of its size; twice the wanted size stays sharp.
                    image.draft("RGB", (2 * size, 2 * size))
                image.load()
                plain = _to_rgb(ImageOps.exif_transpose(image) if _has_orientation(image) else image)
                if size is not None:
                    plain.thumbnail((size, size), PIL.Image.Resampling.LANCZOS)
                return plain
        except CatalexError:
            raise
        except PIL.UnidentifiedImageError:
            raise user_error("not an image", value=data[:16], allowed=FORMATS) from None
        except PIL.Image.DecompressionBombError as error:
            raise user_error(f"the image has too many pixels: {error}") from None
        except Exception as error:
            # Decoders meet damaged files with all kinds of exceptions (OSError, SyntaxError, struct.error).
            reason = str(error).rstrip(".") or type(error).__name__
            raise user_error(f"the image is damaged: {reason}") from None


def _has_orientation(image: Image) -> bool:
    """Whether EXIF asks to turn the image; damaged EXIF is no reason to lose the picture."""
    try:
        return bool(image.getexif().get(0x0112, 1) != 1)
    except Exception:
        return False


def _to_rgb(image: Image) -> Image:
    """Any mode to RGB, transparency on white."""
    import PIL.Image

    if image.mode.startswith(("I", "F")):
        values = np.asarray(image).astype(np.float64)
        if image.mode.startswith("I;16") or (values.size and values.max() > 255):
            values /= 257  # 65535 -> 255
        return PIL.Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layered = image.convert("RGBA")
        background = PIL.Image.new("RGBA", layered.size, (255, 255, 255, 255))
        return PIL.Image.alpha_composite(background, layered).convert("RGB")
    return image.convert("RGB") if image.mode != "RGB" else image.copy()


# --- fetching -----------------------------------------------------------------------------------------------


class ImageOptions(Options):
    """How images are fetched and kept. The defaults are ours: fit for a laptop, gentle to a shop's server."""

    size: int = Field(default=224, ge=16, le=4096)
    """Longest side in pixels; 224 is what common image encoders read."""
    quality: int = Field(default=90, ge=1, le=95)
    """JPEG quality; above 95 Pillow advises against."""
    min_side: int = Field(default=2, ge=1)
    """Shorter sides are refused: some shops answer with a 1 x 1 placeholder instead of "not found"."""
    max_bytes: int = Field(default=MAX_BYTES, ge=1)
    """Largest file."""
    max_pixels: int = Field(default=MAX_PIXELS, ge=1)
    """Largest width x height."""
    workers: int = Field(default=8, ge=1, le=64)
    """Connections over all hosts."""
    per_host: int = Field(default=2, ge=1, le=16)
    """Connections to one host at a time."""
    interval: float = Field(default=0.1, ge=0)
    """Seconds between two requests to one host."""
    retries: int = Field(default=3, ge=0)
    """Tries after a lost connection or a busy answer."""
    backoff: float = Field(default=1.0, ge=0)
    """Seconds before the first retry, doubled each time."""
    timeout: float = Field(default=30.0, gt=0)
    """Seconds without a byte after which a connection counts as lost."""


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
    with closing(_open_partial(folder)) as store:
        present = {address for (address,) in store.execute("SELECT source FROM images")}
        local = {a for a in set(wanted.values()) if _local_path(a) is not None}
        todo = set(wanted.values()) - (present - local)
        failed = _fetch_all(sorted(todo), store, chosen, allow_local)
        lost = {item: failed[address] for item, address in wanted.items() if address in failed}
        _write_images(images, wanted, set(lost), store)
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


def _local_path(address: str) -> Path | None:
    """The file an address names, or None when it is not a local address."""
    parts = urlsplit(address)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return None if "://" in address else Path(address)


@dataclass(frozen=True)
class _Picture:
    jpeg: bytes
    width: int
    height: int


class _FailureError(Exception):
    """One image cannot be had; the text is the reason."""


class _Host:
    """The queue of one host's addresses, and when it may be asked again."""

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self.addresses: deque[str] = deque()
        self.closed: str | None = None
        self._next = 0.0
        self._lock = threading.Lock()

    def turn(self) -> float:
        """Reserve the next request; the seconds to wait until then."""
        with self._lock:
            now = time.monotonic()
            start = max(now, self._next)
            self._next = start + self.interval
            return start - now

    def pause(self, seconds: float) -> None:
        """Ask nobody here for a while."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


def _fetch_all(
    todo: list[str], store: sqlite3.Connection, options: ImageOptions, allow_local: bool
) -> dict[str, str]:
    """Fetch addresses in parallel into the partial store; the reasons of those that failed.

    Every host has its own queue, worked off by at most `per_host` threads: a slow host delays only itself.
    This thread alone writes, once for a handful of images.
    """
    import httpx

    hosts: dict[str, _Host] = defaultdict(lambda: _Host(options.interval))
    for address in todo:
        local = _local_path(address) is not None
        hosts["" if local else urlsplit(address).netloc.lower()].addresses.append(address)
    if "" in hosts:
        hosts[""].interval = 0.0
    results: Queue[tuple[str, _Picture | str]] = Queue(maxsize=4 * options.workers)
    stop = threading.Event()
    failed: dict[str, str] = {}
    client = httpx.Client(follow_redirects=True, timeout=options.timeout, headers={"User-Agent": USER_AGENT})

    def work(host: _Host) -> None:
        while not stop.is_set():
            try:
                address = host.addresses.popleft()
            except IndexError:
                return
            try:
                outcome: _Picture | str = _fetch_one(address, host, client, options, allow_local, stop)
            except _FailureError as error:
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
    results: Queue[tuple[str, _Picture | str]], lanes: list[Future[None]]
) -> tuple[str, _Picture | str]:
    """The next outcome; an unforeseen error of a worker is raised here instead of waiting for ever."""
    while True:
        try:
            return results.get(timeout=0.5)
        except Empty:
            for lane in lanes:
                if lane.done():
                    lane.result()


def _drain(results: Queue[tuple[str, _Picture | str]]) -> None:
    """Free workers that wait to deliver."""
    while True:
        try:
            results.get_nowait()
        except Empty:
            return


def _fetch_one(
    address: str,
    host: _Host,
    client: httpx.Client,
    options: ImageOptions,
    allow_local: bool,
    stop: threading.Event,
) -> _Picture:
    """One address to a small JPEG."""
    if not address:
        raise _FailureError("no address")
    path = _local_path(address)
    if path is None:
        data = _read_web(address, host, client, options, stop)
    elif allow_local:
        data = _read_local(path, options.max_bytes)
    else:
        raise _FailureError("local files are not allowed; allow them explicitly, or use an http address")
    try:
        image = decode_image(
            data, max_pixels=options.max_pixels, max_bytes=options.max_bytes, size=options.size
        )
    except CatalexError as error:
        raise _FailureError(str(error)) from None
    if min(image.size) < options.min_side:
        raise _FailureError(f"only {image.width} x {image.height} pixels: a placeholder")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=options.quality)
    return _Picture(buffer.getvalue(), image.width, image.height)


def _read_local(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise _FailureError(f"the file cannot be read: {error.strerror}") from None
    if len(data) > limit:
        raise _FailureError(f"the file has more than {limit:,} bytes")
    return data


def _read_web(
    address: str, host: _Host, client: httpx.Client, options: ImageOptions, stop: threading.Event
) -> bytes:
    """The bytes at a web address, after as many tries as allowed, each in the host's turn."""
    import httpx

    try:
        check_address(address)
    except CatalexError as error:
        raise _FailureError(str(error)) from None
    reason = "not tried"
    for attempt in range(options.retries + 1):
        if host.closed:
            raise _FailureError(host.closed)
        if stop.wait(host.turn()):
            raise _FailureError("stopped")
        wait = options.backoff * 2**attempt
        try:
            with client.stream("GET", address, headers={"Accept-Encoding": "identity"}) as response:
                if response.status_code == 200:
                    return _read_body(response, options.max_bytes)
                reason = f"the server answers {response.status_code} {response.reason_phrase}".rstrip()
                if response.status_code not in BUSY_STATUSES:
                    raise _FailureError(reason)
                asked = asked_wait(response.headers)
        except httpx.TransportError as error:
            reason, asked = str(error) or type(error).__name__, None
        except (httpx.TooManyRedirects, httpx.InvalidURL) as error:
            raise _FailureError(str(error)) from None
        if asked is not None and asked > MAX_WAIT:
            host.closed = f"{reason} and asks to wait {asked:,.0f} s; run again later"
        elif asked is not None:
            host.pause(asked)
        elif attempt < options.retries:
            stop.wait(min(wait, MAX_WAIT))
    raise _FailureError(host.closed or reason)


def _read_body(response: httpx.Response, limit: int) -> bytes:
    body = bytearray()
    for chunk in response.iter_raw():
        body += chunk
        if len(body) > limit:
            raise _FailureError(f"the file has more than {limit:,} bytes")
    return bytes(body)


# --- files --------------------------------------------------------------------------------------------------


def _open_partial(folder: Path) -> sqlite3.Connection:
    """The store of finished images by address; begun from ``images.parquet`` when that is all there is."""
    path = folder / PARTIAL_FILE
    fresh = not path.exists()
    try:
        store = sqlite3.connect(path)
        store.execute(
            "CREATE TABLE IF NOT EXISTS images (source TEXT PRIMARY KEY, jpeg BLOB, width INT, height INT)"
        )
    except sqlite3.Error as error:
        raise user_error(
            f"the file cannot be used ({error})", place=path, remedy="delete it and run again"
        ) from None
    if fresh and (folder / IMAGES_FILE).exists():
        read_parquet(folder / IMAGES_FILE, [])  # a damaged file is reported in a sentence
        with pq.ParquetFile(folder / IMAGES_FILE) as earlier:
            for batch in earlier.iter_batches(ROWS_PER_GROUP, columns=["source", "jpeg", "width", "height"]):
                rows = zip(*(column.to_pylist() for column in batch.columns), strict=True)
                store.executemany("INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?)", rows)
    store.commit()
    return store


def _write_images(target: Path, wanted: Mapping[int, str], lost: set[int], store: sqlite3.Connection) -> None:
    """``images.parquet`` with every wanted item that has an image, ascending by item."""
    items = [item for item in wanted if item not in lost]
    with (
        atomic_path(target) as temporary,
        pq.ParquetWriter(temporary, IMAGES_SCHEMA, compression="none") as writer,
    ):
        for start in range(0, len(items), ROWS_PER_GROUP):
            group = items[start : start + ROWS_PER_GROUP]
            rows = [
                (
                    item,
                    *store.execute(
                        "SELECT jpeg, width, height, source FROM images WHERE source = ?", [wanted[item]]
                    ).fetchone(),
                )
                for item in group
            ]
            columns = list(zip(*rows, strict=True))
            writer.write_table(pa.table([list(column) for column in columns], schema=IMAGES_SCHEMA))


def _write_failures(path: Path, wanted: Mapping[int, str], lost: Mapping[int, str]) -> None:
    if not lost:
        path.unlink(missing_ok=True)
        return
    lines = [
        json.dumps({ITEM_ID: item, "address": wanted[item], "reason": reason}, ensure_ascii=False)
        for item, reason in lost.items()
    ]
    write_text(path, "\n".join(lines) + "\n")


class ImageStore:
    """Reads ``images.parquet`` by item, one row group at a time; the most recent groups stay in memory.

    >>> store = ImageStore(folder / "images.parquet")     # doctest: +SKIP
    >>> store.get(17)                                     # doctest: +SKIP
    b'\\xff\\xd8...'
    """

    def __init__(self, path: Path, *, groups_in_memory: int = 4) -> None:
        """Read the item ids; the images themselves are read when asked for.

        Raises:
            CatalexError: When the file is missing or damaged, lacks a column, or has an item twice.
        """
        self.path = path
        ids = read_parquet(path, [ITEM_ID])[ITEM_ID]
        self._ids: Ints = ids.to_numpy().astype(np.int64)
        self._row = {int(item): row for row, item in enumerate(self._ids)}
        if len(self._row) != len(self._ids):
            raise user_error("an item occurs twice", place=path, remedy="fetch the images again")
        self._file = pq.ParquetFile(path)
        if "jpeg" not in self._file.schema_arrow.names:
            raise user_error("column 'jpeg' is missing", place=path, allowed=self._file.schema_arrow.names)
        sizes = [self._file.metadata.row_group(g).num_rows for g in range(self._file.metadata.num_row_groups)]
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])
        self._groups: OrderedDict[int, pa.ChunkedArray[Any]] = OrderedDict()
        self._capacity = groups_in_memory
        self._lock = threading.Lock()

    @property
    def ids(self) -> Ints:
        """Item ids that have an image, in file order."""
        return self._ids

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._row

    def __iter__(self) -> Iterator[int]:
        return iter(self._row)

    def get(self, item_id: int) -> bytes | None:
        """The JPEG bytes of an item, or None when it has no image."""
        row = self._row.get(int(item_id))
        if row is None:
            return None
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        with self._lock:
            if group in self._groups:
                self._groups.move_to_end(group)
            else:
                self._groups[group] = self._file.read_row_group(group, columns=["jpeg"])["jpeg"]
                if len(self._groups) > self._capacity:
                    self._groups.popitem(last=False)
            found: bytes | None = self._groups[group][row - int(self._starts[group])].as_py()
        return found
