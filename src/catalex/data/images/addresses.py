"""One address to one small JPEG: from a file or from the web, as politely as its host asks."""

from __future__ import annotations

import io
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from pydantic import Field

from catalex.data.download import BUSY_STATUSES, MAX_WAIT, asked_wait, check_address
from catalex.data.images.decoding import MAX_BYTES, MAX_PIXELS, decode_image
from catalex.errors import CatalexError
from catalex.options import Options

if TYPE_CHECKING:
    import httpx


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


def local_path(address: str) -> Path | None:
    """The file an address names, or None when it is not a local address."""
    parts = urlsplit(address)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return None if "://" in address else Path(address)


@dataclass(frozen=True)
class Picture:
    """A decoded and newly encoded image."""

    jpeg: bytes
    width: int
    height: int


class FetchError(Exception):
    """One image cannot be had; the text is the reason."""


class Host:
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


def fetch_one(
    address: str,
    host: Host,
    client: httpx.Client,
    options: ImageOptions,
    allow_local: bool,
    stop: threading.Event,
) -> Picture:
    """One address to a small JPEG."""
    if not address:
        raise FetchError("no address")
    path = local_path(address)
    if path is None:
        data = _read_web(address, host, client, options, stop)
    elif allow_local:
        data = _read_local(path, options.max_bytes)
    else:
        raise FetchError("local files are not allowed; allow them explicitly, or use an http address")
    try:
        image = decode_image(
            data, max_pixels=options.max_pixels, max_bytes=options.max_bytes, size=options.size
        )
    except CatalexError as error:
        raise FetchError(str(error)) from None
    if min(image.size) < options.min_side:
        raise FetchError(f"only {image.width} x {image.height} pixels: a placeholder")
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=options.quality)
    return Picture(buffer.getvalue(), image.width, image.height)


def _read_local(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise FetchError(f"the file cannot be read: {error.strerror}") from None
    if len(data) > limit:
        raise FetchError(f"the file has more than {limit:,} bytes")
    return data


def _read_web(
    address: str, host: Host, client: httpx.Client, options: ImageOptions, stop: threading.Event
) -> bytes:
    """The bytes at a web address, after as many tries as allowed, each in the host's turn."""
    import httpx

    try:
        check_address(address)
    except CatalexError as error:
        raise FetchError(str(error)) from None
    reason = "not tried"
    for attempt in range(options.retries + 1):
        if host.closed:
            raise FetchError(host.closed)
        if stop.wait(host.turn()):
            raise FetchError("stopped")
        wait = options.backoff * 2**attempt
        try:
            with client.stream("GET", address, headers={"Accept-Encoding": "identity"}) as response:
                if response.status_code == 200:
                    return _read_body(response, options.max_bytes)
                reason = f"the server answers {response.status_code} {response.reason_phrase}".rstrip()
                if response.status_code not in BUSY_STATUSES:
                    raise FetchError(reason)
                asked = asked_wait(response.headers)
        except httpx.TransportError as error:
            reason, asked = str(error) or type(error).__name__, None
        except (httpx.TooManyRedirects, httpx.InvalidURL) as error:
            raise FetchError(str(error)) from None
        if asked is not None and asked > MAX_WAIT:
            host.closed = f"{reason} and asks to wait {asked:,.0f} s; run again later"
        elif asked is not None:
            host.pause(asked)
        elif attempt < options.retries:
            stop.wait(min(wait, MAX_WAIT))
    raise FetchError(host.closed or reason)


def _read_body(response: httpx.Response, limit: int) -> bytes:
    body = bytearray()
    for chunk in response.iter_raw():
        body += chunk
        if len(body) > limit:
            raise FetchError(f"the file has more than {limit:,} bytes")
    return bytes(body)
