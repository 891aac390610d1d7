"""Downloads against a local server that fails on demand. Nothing here leaves 127.0.0.1."""

from __future__ import annotations

import builtins
import errno
import gzip
import hashlib
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from catalex import errors
from catalex.data import download as module
from catalex.data.download import asked_wait, download
from catalex.errors import CatalexError
from support.server import Server

DATA = gzip.compress(random.Random(0).randbytes(300_000), mtime=0)
DIGEST = hashlib.sha256(DATA).hexdigest()


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_stores_the_bytes_as_sent_and_leaves_nothing_else(server: Server, tmp_path: Path) -> None:
    url = server.add("/a.json.gz", DATA)
    target = download(url, tmp_path / "deep" / "a.json.gz", sha256=DIGEST.upper())
    assert target.read_bytes() == DATA
    assert leftovers(target.parent) == ["a.json.gz"]
    assert server.requests[0].headers["User-Agent"].startswith("catalex")


def test_gzip_labelled_as_encoding_is_not_unpacked(server: Server, tmp_path: Path) -> None:
    url = server.add("/a.json.gz", DATA, headers={"Content-Encoding": "gzip"})
    assert download(url, tmp_path / "a.json.gz").read_bytes() == DATA


def test_a_packed_answer_for_a_plain_file_is_refused(server: Server, tmp_path: Path) -> None:
    url = server.add("/a.csv", DATA, headers={"Content-Encoding": "gzip"})
    with pytest.raises(CatalexError, match="sent the file packed"):
        download(url, tmp_path / "a.csv")


def test_cut_connections_are_resumed(server: Server, tmp_path: Path) -> None:
    url = server.add("/a.gz", DATA, cut_after=[100_000, 50_000])
    target = download(url, tmp_path / "a.gz", sha256=DIGEST, backoff=0.01)
    assert target.read_bytes() == DATA
    asked = [request.headers.get("Range") for request in server.requests]
    assert asked == [None, "bytes=100000-", "bytes=150000-"]
    assert server.requests[1].headers["If-Range"] == server.pages["/a.gz"].etag


def test_a_later_call_resumes_with_last_modified_when_there_is_no_etag(
    server: Server, tmp_path: Path
) -> None:
    day = {"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
    url = server.add("/a.gz", DATA, etag=None, headers=day, cut_after=[70_000])
    with pytest.raises(CatalexError, match="70,000 bytes are kept"):
        download(url, tmp_path / "a.gz", retries=0)
    assert leftovers(tmp_path) == ["a.gz.part", "a.gz.part.json"]
    assert download(url, tmp_path / "a.gz", retries=0).read_bytes() == DATA
    assert server.requests[-1].headers["Range"] == "bytes=70000-"


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_strong_version_the_file_is_fetched_anew(
    server: Server, tmp_path: Path, etag: str | None
) -> None:
    url = server.add("/a.gz", DATA, etag=etag, cut_after=[70_000])
    assert download(url, tmp_path / "a.gz", backoff=0).read_bytes() == DATA
    assert all("Range" not in request.headers for request in server.requests)


def test_a_server_without_ranges_restarts(server: Server, tmp_path: Path) -> None:
    url = server.add("/a.gz", DATA, ranges=False, cut_after=[100_000])
    assert download(url, tmp_path / "a.gz", backoff=0).read_bytes() == DATA
    assert "Range" in server.requests[1].headers


def test_a_file_that_changed_meanwhile_is_not_glued_to_the_old_half(server: Server, tmp_path: Path) -> None:
    url = server.add("/a.gz", DATA, cut_after=[100_000])
    with pytest.raises(CatalexError):
        download(url, tmp_path / "a.gz", retries=0)
    newer = gzip.compress(random.Random(1).randbytes(280_000), mtime=0)
    server.add("/a.gz", newer)
    assert download(url, tmp_path / "a.gz").read_bytes() == newer


def test_a_part_of_another_address_is_not_continued(server: Server, tmp_path: Path) -> None:
    first = server.add("/a.gz", DATA, cut_after=[100_000])
    with pytest.raises(CatalexError):
        download(first, tmp_path / "a.gz", retries=0)
    other = gzip.compress(b"other" * 9, mtime=0)
    assert download(server.add("/b.gz", other), tmp_path / "a.gz").read_bytes() == other


def test_stopped_between_the_last_byte_and_the_rename(server: Server, tmp_path: Path) -> None:
    url = server.add("/a.gz", DATA)
    (tmp_path / "a.gz.part").write_bytes(DATA)
    module.write_json(tmp_path / "a.gz.part.json", {"url": url, "validator": server.pages["/a.gz"].etag})
    assert download(url, tmp_path / "a.gz", sha256=DIGEST).read_bytes() == DATA
    assert len(server.requests) == 1


def test_a_part_longer_than_the_file_is_thrown_away(server: Server, tmp_path: Path) -> None:
    url = server.add("/a.gz", DATA)
    (tmp_path / "a.gz.part").write_bytes(DATA + b"too much")
    module.write_json(tmp_path / "a.gz.part.json", {"url": url, "validator": server.pages["/a.gz"].etag})
    assert download(url, tmp_path / "a.gz", sha256=DIGEST).read_bytes() == DATA


def test_killed_in_the_middle_then_run_again(server: Server, tmp_path: Path) -> None:
    big = gzip.compress(random.Random(2).randbytes(3_000_000), compresslevel=1, mtime=0)
    url = server.add("/a.gz", big, slow=40)
    target = tmp_path / "a.gz"
    code = (
        "import sys; from pathlib import Path; from catalex.data.download import download\n"
        "download(sys.argv[1], Path(sys.argv[2]))"
    )
    child = subprocess.Popen([sys.executable, "-c", code, url, str(target)], stderr=subprocess.DEVNULL)
    part = tmp_path / "a.gz.part"
    limit = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 100_000) and time.monotonic() < limit:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    held = part.stat().st_size
    assert 0 < held < len(big)
    assert not target.exists()
    server.pages["/a.gz"].slow = 0
    assert download(url, target).read_bytes() == big
    assert server.requests[-1].headers["Range"] == f"bytes={held}-"


def test_wrong_checksum_deletes_and_tells_both(server: Server, tmp_path: Path) -> None:
    url = server.add("/a.gz", DATA)
    with pytest.raises(CatalexError) as caught:
        download(url, tmp_path / "a.gz", sha256="0" * 64)
    assert DIGEST in str(caught.value)
    assert "0" * 64 in str(caught.value)
    assert leftovers(tmp_path) == []


def test_an_existing_file_is_kept_but_checked(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "a.gz"
    target.write_bytes(DATA)
    assert download("http://127.0.0.1:1/a.gz", target, sha256=DIGEST) == target
    with pytest.raises(CatalexError, match=r"wrong checksum.*[Dd]elete or rename"):
        download("http://127.0.0.1:1/a.gz", target, sha256="1" * 64)
    assert target.read_bytes() == DATA
    assert server.requests == []


def test_not_found_is_final_and_names_the_address(server: Server, tmp_path: Path) -> None:
    with pytest.raises(CatalexError, match="404") as caught:
        download(server.url + "/none.gz", tmp_path / "none.gz")
    assert server.url + "/none.gz" in str(caught.value)
    assert str(tmp_path / "none.gz") in str(caught.value)
    assert len(server.requests) == 1


def test_busy_then_good_waits_as_asked(server: Server, tmp_path: Path) -> None:
    url = server.add("/a.gz", DATA, statuses=[(503, {"Retry-After": "1"}), (429, {})])
    assert download(url, tmp_path / "a.gz", backoff=0.01).read_bytes() == DATA
    first, second, third = (request.time for request in server.requests)
    assert second - first >= 0.99
    assert third - second < 0.9


def test_busy_for_ever_gives_up_after_the_retries(server: Server, tmp_path: Path) -> None:
    url = server.add("/a.gz", DATA, statuses=[(503, {})] * 9)
    with pytest.raises(CatalexError, match="503"):
        download(url, tmp_path / "a.gz", retries=2, backoff=0)
    assert len(server.requests) == 3


def test_a_long_wait_is_reported_instead_of_slept(server: Server, tmp_path: Path) -> None:
    url = server.add("/a.gz", DATA, statuses=[(429, {"Retry-After": "3600"})])
    with pytest.raises(CatalexError, match="asks to wait 3,600 s"):
        download(url, tmp_path / "a.gz")
    assert len(server.requests) == 1


def test_offline_names_address_and_place(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/a.gz"
        with pytest.raises(CatalexError) as caught:
            download(url, tmp_path / "a.gz", retries=1, backoff=0)
    message = str(caught.value)
    assert url in message
    assert "by hand" in message
    assert str(tmp_path / "a.gz") in message


def test_a_silent_server_times_out(server: Server, tmp_path: Path) -> None:
    url = server.add("/a.gz", DATA, delay=0.5)
    with pytest.raises(CatalexError, match="could not be fetched"):
        download(url, tmp_path / "a.gz", retries=0, timeout=0.1)


@pytest.mark.parametrize("labelled", [True, False])
def test_a_web_page_is_not_taken_for_an_archive(server: Server, tmp_path: Path, labelled: bool) -> None:
    kind = {"Content-Type": "text/html; charset=utf-8"} if labelled else {}
    url = server.add("/a.gz", b"<!DOCTYPE html><p>Please log in", headers=kind)
    with pytest.raises(CatalexError, match="web page"):
        download(url, tmp_path / "a.gz")
    assert leftovers(tmp_path) == []


def test_other_bytes_are_not_taken_for_a_gzip_file(server: Server, tmp_path: Path) -> None:
    with pytest.raises(CatalexError, match="not a gzip file"):
        download(server.add("/a.gz", b"user,item\n"), tmp_path / "a.gz")
    with pytest.raises(CatalexError, match="not a zip archive"):
        download(server.add("/a.zip", b""), tmp_path / "a.zip")


@pytest.mark.parametrize("length", [True, False])
def test_too_large_is_refused(server: Server, tmp_path: Path, length: bool) -> None:
    url = server.add("/a.gz", DATA, length=length)
    with pytest.raises(CatalexError, match="at most 1,000 bytes"):
        download(url, tmp_path / "a.gz", size_limit=1000)
    assert leftovers(tmp_path) == []


def test_unknown_length_is_fine(server: Server, tmp_path: Path) -> None:
    assert download(server.add("/a.gz", DATA, length=False), tmp_path / "a.gz").read_bytes() == DATA


@pytest.mark.parametrize(
    "url", ["ftp://host/a.gz", "file:///etc/passwd", "no address", "http://", "http://[::bad"]
)
def test_only_web_addresses(url: str, tmp_path: Path) -> None:
    with pytest.raises(CatalexError, match="address") as caught:
        download(url, tmp_path / "a.gz")
    assert "http" in str(caught.value)


def test_redirects_are_followed_but_not_out_of_the_web(server: Server, tmp_path: Path) -> None:
    good = server.add("/a.gz", DATA)
    moved = server.add("/moved.gz", b"", statuses=[(302, {"Location": good})])
    assert download(moved, tmp_path / "a.gz").read_bytes() == DATA
    bad = server.add("/bad.gz", b"", statuses=[(302, {"Location": "file:///etc/passwd"})])
    with pytest.raises(CatalexError, match="forbidden address"):
        download(bad, tmp_path / "b.gz")
    circle = server.add("/circle.gz", b"", statuses=[(302, {"Location": server.url + "/circle.gz"})] * 40)
    with pytest.raises(CatalexError, match="circle"):
        download(circle, tmp_path / "c.gz")


def test_a_full_disk_is_told_before_and_while_writing(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.add("/a.gz", DATA)
    with monkeypatch.context() as patch:
        patch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
        with pytest.raises(CatalexError, match="disk is full"):
            download(url, tmp_path / "a.gz")

    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", no_space)
    with pytest.raises(CatalexError, match="disk is full"):
        download(url, tmp_path / "a.gz")
    assert not (tmp_path / "a.gz").exists()


def test_two_downloads_of_one_file_do_not_mix(server: Server, tmp_path: Path) -> None:
    with module._locked(tmp_path / "a.gz.part"), pytest.raises(CatalexError, match="another process"):
        download(server.add("/a.gz", DATA), tmp_path / "a.gz")


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "httpx":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr(errors.importlib, "import_module", without)
    with pytest.raises(CatalexError, match=r"'httpx' is not installed.*catalex\[download\]"):
        download("http://127.0.0.1/a", tmp_path / "a")


def test_asked_wait_reads_seconds_and_dates() -> None:
    assert asked_wait({}) is None
    assert asked_wait({"retry-after": "7"}) == 7
    assert asked_wait({"retry-after": "soon"}) is None
    assert asked_wait({"retry-after": "Mon, 01 Jan 2024 00:00:00 GMT"}) == 0
    assert (asked_wait({"retry-after": "Fri, 01 Jan 2100 00:00:00 GMT"}) or 0) > 1e8
