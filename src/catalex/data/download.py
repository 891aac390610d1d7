"""Fetch one file over HTTP: resumed where it was cut, checked, and put in place only when it is whole.

While a download runs its bytes are in ``<target>.part``, and ``<target>.part.json`` remembers which version
of the file they belong to (the server's ETag or Last-Modified). A later call asks for the rest with ``Range``
and ``If-Range`` (RFC 9110, sections 13.1.5 and 14.2), so a server whose file has changed answers with the
whole new file instead of a tail that does not fit. The target appears by a rename, complete and with the
right checksum, or not at all.
"""

from __future__ import annotations

import email.utils
import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from catalex.artifacts import explain_os_error, hash_file, write_json
from catalex.errors import CatalexError, require, user_error
from catalex.progress import Track, say

if TYPE_CHECKING:
    import httpx

USER_AGENT = "catalex (recommender research; +https://pypi.org/project/catalex)"
"""How catalex introduces itself to servers."""

BUSY_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that may be different a moment later; every other failure is final."""

MAX_WAIT = 120.0
"""Longest pause in seconds before the next try; a server that asks for a longer one is given up."""

PROGRESS = 1 << 20
"""Bytes after which a connection counts as working, so that long downloads may be cut often."""

MAGIC = {".gz": (b"\x1f\x8b", "a gzip file"), ".zip": (b"PK", "a zip archive")}
"""First bytes by the target's suffix: error pages sent with status 200 are recognised by them."""


def download(
    url: str,
    target: Path,
    *,
    sha256: str | None = None,
    size_limit: int | None = None,
    retries: int = 5,
    timeout: float = 30.0,
    backoff: float = 1.0,
) -> Path:
    """Fetch `url` into `target`, unless it is there already. Content is stored as sent: gzip stays gzip.

    Args:
        url: Address, http or https.
        target: File to write; its folder is made.
        sha256: Expected checksum in hexadecimal, or None where the publisher gives none.
        size_limit: Most bytes to accept.
        retries: Failures in a row that are forgiven; a connection that brought 1 MiB starts the count afresh.
        timeout: Seconds without any byte after which the connection counts as lost.
        backoff: Seconds before the first retry, doubled each time, at most `MAX_WAIT`.

    Returns:
        `target`.

    Raises:
        CatalexError: When the address cannot be reached or is refused, the file is too large, is a web page
            where an archive was expected, or has another checksum, and when the disk is full.
    """
    require("httpx", "download")
    check_address(url)
    if target.exists():
        return _verify_existing(target, sha256)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(_part(target)) as part:
            _fetch_with_retries(url, target, part, size_limit, retries, timeout, backoff)
        _verify(url, target, sha256)
        os.replace(_part(target), target)
        _record(target).unlink(missing_ok=True)
    except OSError as error:
        raise explain_os_error(error, target) from error
    return target


def check_address(url: str) -> None:
    """Refuse anything but http and https before a connection is made.

    Raises:
        CatalexError: Naming the address and what is allowed.
    """
    import httpx

    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError) as error:
        raise user_error(f"not an address ({error})", value=url, allowed="http:// or https://") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise user_error(
            "the address is not a web address",
            value=url,
            allowed="http:// or https://",
            remedy="check the address",
        )


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds the server asks us to wait (``Retry-After``, a number or a date); None when it does not say."""
    text = headers.get("retry-after")
    if text is None:
        return None
    if text.strip().isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


# --- one file -----------------------------------------------------------------------------------------------


class _LostError(Exception):
    """The connection failed or the server is busy; trying again may help. `wait` is what it asked for."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


def _part(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def _record(target: Path) -> Path:
    return target.with_name(target.name + ".part.json")


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """`path` opened for appending, for this process alone: two writers would shuffle their bytes together."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise user_error(
                "another process is downloading this file", place=path, remedy="wait for it"
            ) from None
        yield file
        file.flush()
        os.fsync(file.fileno())


def _fetch_with_retries(
    url: str, target: Path, part: BinaryIO, limit: int | None, retries: int, timeout: float, backoff: float
) -> None:
    """Fill `part` completely, reconnecting as often as allowed."""
    import httpx

    failures = 0
    with httpx.Client(follow_redirects=True, timeout=timeout, headers={"User-Agent": USER_AGENT}) as client:
        while True:
            before = part.tell()
            try:
                _fetch_once(client, url, target, part, limit)
                return
            except httpx.UnsupportedProtocol as error:
                raise user_error(f"redirected to a forbidden address ({error})", place=url) from None
            except (httpx.TransportError, _LostError) as error:
                failures = 1 if part.tell() - before >= PROGRESS else failures + 1
                asked = error.wait if isinstance(error, _LostError) else None
                if failures > retries or (asked or 0) > MAX_WAIT:
                    raise _unreachable(url, target, error, asked, part.tell()) from None
                wait = asked if asked is not None else min(backoff * 2 ** (failures - 1), MAX_WAIT)
                say(f"{url}: {_reason(error)}; try {failures} of {retries} follows in {wait:.1f} s")
                time.sleep(wait)
            except httpx.TooManyRedirects:
                raise user_error(
                    "the address redirects in a circle", place=url, remedy="check the address"
                ) from None


def _fetch_once(client: httpx.Client, url: str, target: Path, part: BinaryIO, limit: int | None) -> None:
    """One request: append the rest where the server grants it, else start anew."""
    headers = {"Accept-Encoding": "identity"} | _resume_headers(url, target, part)
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code == 416:
            if response.headers.get("content-range") == f"bytes */{part.tell()}":
                return  # we were stopped between the last byte and the rename
            _restart(part)
            raise _LostError("the server has nothing after the bytes we hold", wait=0.0)
        answer = _read_answer(response, url, target)
        if answer.start != part.tell():
            _restart(part)
            if answer.start:
                raise _LostError("the server sent another range than asked for", wait=0.0)
        if limit is not None and answer.total is not None and answer.total > limit:
            raise _too_large(url, target, answer.total, limit)
        _check_space(target, (answer.total or 0) - part.tell())
        write_json(_record(target), {"url": url, "validator": answer.validator})
        with Track(f"download {target.name}", answer.total, unit="bytes", start=part.tell()) as track:
            for chunk in response.iter_raw():  # no size: httpx would hold back, and lose, an unfilled chunk
                if limit is not None and part.tell() + len(chunk) > limit:
                    raise _too_large(url, target, part.tell() + len(chunk), limit)
                part.write(chunk)
                track.advance(len(chunk))
        part.flush()
        if answer.total is not None and part.tell() < answer.total:
            raise _LostError(f"the connection ended after {part.tell():,} of {answer.total:,} bytes")


@dataclass(frozen=True)
class _Answer:
    """What a good answer says: where its bytes begin, how long the whole file is, and which version it is."""

    start: int
    total: int | None
    validator: str | None


def _read_answer(response: httpx.Response, url: str, target: Path) -> _Answer:
    """Understand status and headers.

    Raises:
        _LostError: When the server is busy.
        CatalexError: When it refuses, or sends something else than a file.
    """
    status, headers = response.status_code, response.headers
    if status in BUSY_STATUSES:
        raise _LostError(f"the server answers {status} {response.reason_phrase}", asked_wait(headers))
    if status not in (200, 206):
        raise user_error(
            f"the server refuses the file: {status} {response.reason_phrase}",
            place=url,
            remedy=f"check the address, or fetch the file by hand and put it at {target}",
        )
    if url.startswith("https:") and response.url.scheme != "https":
        raise user_error(
            "redirected from https to an unprotected address", place=url, value=str(response.url)
        )
    if headers.get("content-type", "").startswith("text/html") and target.suffix not in (".html", ".htm"):
        raise _not_a_file(url, target, "the server sent a web page instead of the file")
    if headers.get("content-encoding", "identity") != "identity" and target.suffix != ".gz":
        raise user_error("the server sent the file packed although asked not to", place=url)
    etag = headers.get("etag", "")
    # Weak tags promise the same meaning, not the same bytes, so they cannot vouch for a tail.
    validator = etag if etag and not etag.startswith("W/") else headers.get("last-modified")
    if status == 206:
        span, _, whole = headers.get("content-range", "").removeprefix("bytes ").partition("/")
        first = span.partition("-")[0]
        return _Answer(
            int(first) if first.isdigit() else -1, int(whole) if whole.isdigit() else None, validator
        )
    length = headers.get("content-length", "")
    return _Answer(0, int(length) if length.isdigit() else None, validator)


def _resume_headers(url: str, target: Path, part: BinaryIO) -> dict[str, str]:
    """Headers that ask for the rest; empty when nothing is there or its version is unknown."""
    held = part.tell()
    if held == 0:
        return {}
    try:
        record = json.loads(_record(target).read_text(encoding="utf-8"))
        validator = record["validator"] if record["url"] == url else None
    except (OSError, ValueError, KeyError, TypeError):
        validator = None
    return {"Range": f"bytes={held}-", "If-Range": validator} if validator else {}


def _restart(part: BinaryIO) -> None:
    part.seek(0)
    part.truncate()


# --- checks -------------------------------------------------------------------------------------------------


def _verify_existing(target: Path, sha256: str | None) -> Path:
    """A file that is there already stays, but one with another content is not passed off as the right one."""
    found = hash_file(target) if sha256 else None
    if found is not None and sha256 is not None and found != sha256.lower():
        raise user_error(
            "the file is there but has the wrong checksum",
            place=target,
            value=found,
            allowed=sha256.lower(),
            remedy="delete or rename it and run the command again",
        )
    say(f"{target} is already there")
    return target


def _verify(url: str, target: Path, sha256: str | None) -> None:
    """Look at the finished part file: first bytes, then checksum. A wrong one is deleted."""
    part = _part(target)
    magic, kind = MAGIC.get(target.suffix, (b"", ""))
    with part.open("rb") as file:
        head = file.read(256)
    if not head.startswith(magic):
        page = head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml"))
        raise _not_a_file(
            url, target, "the server sent a web page instead of the file" if page else f"not {kind}"
        )
    if sha256 is not None and (found := hash_file(part)) != sha256.lower():
        _discard(target)
        raise user_error(
            "the downloaded file has the wrong checksum and was deleted",
            place=url,
            value=found,
            allowed=sha256.lower(),
            remedy="run the command again; if it repeats, the publisher changed the file",
        )


def _check_space(target: Path, needed: int) -> None:
    """Refuse at once what would fill the disk after hours."""
    if needed > shutil.disk_usage(target.parent).free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _discard(target: Path) -> None:
    _part(target).unlink(missing_ok=True)
    _record(target).unlink(missing_ok=True)


def _not_a_file(url: str, target: Path, problem: str) -> CatalexError:
    _discard(target)
    return user_error(
        problem, place=url, remedy=f"open the address in a browser, and put the file at {target}"
    )


def _too_large(url: str, target: Path, found: int, limit: int) -> CatalexError:
    _discard(target)
    return user_error(
        "the file is too large",
        place=url,
        value=found,
        allowed=f"at most {limit:,} bytes",
        remedy="raise the limit",
    )


def _reason(error: Exception) -> str:
    """The error in a few words; httpx's timeouts carry no text of their own."""
    return str(error) or f"no answer in time ({type(error).__name__})"


def _unreachable(url: str, target: Path, error: Exception, asked: float | None, held: int) -> CatalexError:
    wait = f"; the server asks to wait {asked:,.0f} s" if asked and asked > MAX_WAIT else ""
    kept = f"; {held:,} bytes are kept and the next run continues from them" if held else ""
    return user_error(
        f"the file could not be fetched: {_reason(error)}{wait}{kept}",
        place=url,
        remedy=f"check the network and run again, or fetch the file by hand and put it at {target}",
    )
