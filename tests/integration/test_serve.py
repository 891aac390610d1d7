"""`catalex serve` as a process: it starts, tells its address, ends gracefully, refuses in one sentence."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra 'serve'")
pytest.importorskip("sklearn", reason="needs the extra 'text'")

import httpx

from catalex.errors import CatalexError
from catalex.serving.run import serve
from catalex.serving.settings import parse_options
from support.live import small_bundle
from support.served import served_by

COMMAND = [sys.executable, "-m", "catalex", "serve"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bundle(tmp_path_factory.mktemp("serve") / "shop")


def served(
    bundle: Path, *arguments: str
) -> AbstractContextManager[tuple[subprocess.Popen[str], str, list[str]]]:
    return served_by(["serve", str(bundle), "--port", "0", *arguments])


@pytest.mark.slow
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


def test_wrong_options_are_refused_in_one_sentence(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("short\n")

    def refusal(folder: Path, *settings: str, **given: object) -> str:
        with pytest.raises(CatalexError) as caught:
            serve(folder, parse_options({"port": 0, **given}, settings))
        return str(caught.value)

    assert "so it is not a bundle" in refusal(tmp_path)
    assert "unknown key 'timeot'" in refusal(bundle, "timeot=3")
    assert "NAME=VALUE" in refusal(bundle, "timeout")
    assert "serve.timeout" in refusal(bundle, "timeout=-1")
    assert "line 1" in refusal(bundle, api_key_file=tmp_path / "keys")
    assert "cannot be read" in refusal(bundle, api_key_file=tmp_path / "none")
    assert "does not exist" in refusal(bundle, models=tmp_path / "none")
    assert "serve.port" in refusal(bundle, port=70000)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "cannot listen here" in refusal(bundle, port=taken.getsockname()[1])


def test_a_wrong_command_ends_in_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run([*COMMAND, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "so it is not a bundle" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
