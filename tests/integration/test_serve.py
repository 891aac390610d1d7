"""`catalex serve` as a process: it starts, tells its address, ends gracefully, and refuses in one sentence."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra 'serve'")
pytest.importorskip("sklearn", reason="needs the extra 'text'")

import httpx

from support.live import small_bundle

COMMAND = [sys.executable, "-m", "catalex", "serve"]
READY = re.compile(r"catalex answers at (http://\S+)")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bundle(tmp_path_factory.mktemp("serve") / "shop")


@contextmanager
def served(bundle: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """The process, its address, and its lines."""
    process = subprocess.Popen(
        [*COMMAND, str(bundle), "--port", "0", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    lines: list[str] = []
    told = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if READY.search(line):
                told.set()
        told.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert told.wait(60)
        found = READY.search("".join(lines))
        assert found is not None, lines
        yield process, found[1].replace("localhost", "127.0.0.1"), lines
    finally:
        process.kill()
        process.wait()
        reader.join()
        assert process.stderr is not None
        process.stderr.close()


def test_it_serves_and_ends_gracefully(bundle: Path, tmp_path: Path) -> None:
    store = tmp_path / "items.sqlite"
    with served(bundle, "--store", str(store), "--set", "drain=0.6") as (process, address, lines):
        with httpx.Client(base_url=address, trust_env=False, timeout=20) as http:
            key = http.get("/v1/items", params={"limit": 1}).json()["items"][0]["key"]
            new = {"items": [{"key": "NEW-1", "title": "PURPLE ZEBRA LAMP"}]}
            assert http.post("/v1/items", json=new).status_code == 201
            assert "catalex" in http.get("/").text

            statuses: list[int] = []
            begun = threading.Event()

            def ask() -> None:
                with httpx.Client(base_url=address, trust_env=False, timeout=20) as other:
                    while process.poll() is None:
                        try:
                            statuses.append(other.post("/v1/recommend", json={"history": [key]}).status_code)
                        except httpx.TransportError:
                            return  # the address is closed: no request was taken
                        begun.set()

            caller = threading.Thread(target=ask)
            caller.start()
            assert begun.wait(10)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            assert http.get("/ready").status_code == 503, "load balancers turn away first"
            assert http.post("/v1/recommend", json={"history": [key]}).status_code == 200, "and it goes on"
        assert process.wait(20) == 0
        caller.join()
        assert set(statuses) == {200}
    assert "Traceback" not in "".join(lines)
    assert not any("ZEBRA" in line or "NEW-1" in line or key in line for line in lines)

    with (
        served(bundle, "--store", str(store)) as (_, address, _),
        httpx.Client(base_url=address, trust_env=False, timeout=20) as http,
    ):
        assert http.get("/v1/items/NEW-1").json()["title"] == "PURPLE ZEBRA LAMP", "it was kept"


def refusal(*arguments: str) -> str:
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_wrong_commands_are_refused_in_one_sentence(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("short\n")
    assert "so it is not a bundle" in refusal(str(tmp_path))
    assert "unknown key 'timeot'" in refusal(str(bundle), "--set", "timeot=3")
    assert "NAME=VALUE" in refusal(str(bundle), "--set", "timeout")
    assert "serve.timeout" in refusal(str(bundle), "--set", "timeout=-1")
    assert "line 1" in refusal(str(bundle), "--api-key-file", str(tmp_path / "keys"))
    assert "cannot be read" in refusal(str(bundle), "--api-key-file", str(tmp_path / "none"))
    assert "does not exist" in refusal(str(bundle), "--models", str(tmp_path / "none"))
    assert "serve.port" in refusal(str(bundle), "--port", "70000")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert "cannot listen here" in refusal(str(bundle), "--port", port)
