"""The load generators against a small service: what they print, and what they write to a ledger."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra 'serve'")
pytest.importorskip("sklearn", reason="needs the extra 'text'")

from catalex.reporting.ledger import BenchmarkLine, read
from support.live import ITEMS, small_bundle
from support.service import running

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def measured(script: str, *arguments: str) -> str:
    found = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *arguments],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


@pytest.mark.slow
def test_load_and_soak_are_recorded_and_leave_the_catalogue_as_it_was(tmp_path: Path) -> None:
    ledger = tmp_path / "benchmarks.jsonl"
    with running(small_bundle(tmp_path / "shop")) as shop:
        measured(
            "serve.py", shop.address, "--seconds", "1", "--concurrency", "1", "2", "--record", str(ledger)
        )
        told = measured(
            "serve.py", shop.address, "--soak", "4", "--concurrency", "4", "--writes", "0.3",
            "--pid", str(os.getpid()), "--record", str(ledger),
        )  # fmt: skip
        assert shop.service.present.catalogue.revision > 0, "it was written to"
        assert len(shop.service.present.catalogue) == ITEMS, "and cleared away"
    assert "saturated at" in told
    assert " 0 others {}" in told.splitlines()[-1]
    values = {line.name: line.value for line in read(ledger, BenchmarkLine)}
    for callers in ("001", "002"):
        assert values[f"serve/recommend-{callers}-callers-rate"] > 0
        p50, p99 = (values[f"serve/recommend-{callers}-callers-{name}"] for name in ("p50", "p99"))
        assert 0 < p50 <= p99
    assert values["serve/recommend-soak-answers"] > 0
    assert values["serve/recommend-soak-errors"] == 0
    assert values["serve/recommend-soak-memory"] > 100


def test_a_service_that_is_not_there_is_told_in_one_sentence() -> None:
    found = subprocess.run(
        [sys.executable, str(BENCHMARKS / "serve.py"), "http://127.0.0.1:1"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert found.returncode == 1
    assert found.stdout == "http://127.0.0.1:1: the service does not answer as expected (ConnectError)\n"
    assert "Traceback" not in found.stderr
