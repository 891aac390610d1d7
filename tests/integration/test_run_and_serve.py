"""``catalex run RECIPE --serve``: from tables to served recommendations, and a graceful end."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra 'serve'")
pytest.importorskip("sklearn", reason="needs the extra 'text'")

import httpx

from catalex.serving.settings import ServeOptions
from support.served import served_by
from support.tiny_story import ITEMS, write_story


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
        command = ["run", str(recipe), "--serve"]
        with served_by(command, folder=tmp_path, seconds=120) as (process, address, lines):
            assert not address.endswith(f":{ServeOptions().port}")
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
    assert "Traceback" not in "".join(lines)
    assert (tmp_path / "run" / "report" / "report.html").is_file()
