"""``catalex run RECIPE --serve``: from tables to served recommendations, and a graceful end."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra 'serve'")
pytest.importorskip("sklearn", reason="needs the extra 'text'")

import httpx

from catalex.serving.settings import ServeOptions
from support.tiny_story import ITEMS, write_story

READY = re.compile(r"catalex answers at http://localhost:(\d+)")


@pytest.mark.slow
def test_one_command_from_tables_to_recommendations(tmp_path: Path) -> None:
    recipe = write_story(tmp_path)
    with socket.socket() as taken:  # the usual port is in use, by this test or by somebody else
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", ServeOptions().port))
            taken.listen()
        except OSError:
            pass
        process = subprocess.Popen(
            [sys.executable, "-m", "catalex", "run", str(recipe), "--serve"],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
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
            assert told.wait(120)
            found = READY.search("".join(lines))
            assert found is not None, "".join(lines[-20:])
            assert int(found[1]) != ServeOptions().port
            address = f"http://127.0.0.1:{found[1]}"
            with httpx.Client(base_url=address, trust_env=False, timeout=30) as http:
                assert http.get("/ready").json()["status"] == "ready"
                assert http.get("/v1/about").json()["items"] == ITEMS
                items = http.get("/v1/items", params={"limit": 2}).json()["items"]
                history = [item["key"] for item in items]
                answer = http.post("/v1/recommend", json={"history": history, "k": 5})
                assert len(answer.json()["items"]) == 5
                new = {"items": [{"key": "NEW-1", "title": "PURPLE ZEBRA LAMP"}]}
                assert http.post("/v1/items", json=new).status_code == 201
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.wait()
            reader.join()
            assert process.stderr is not None
            process.stderr.close()
    assert "Traceback" not in "".join(lines)
    assert (tmp_path / "run" / "report" / "report.html").is_file()
