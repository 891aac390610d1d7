"""Killed at random moments under a write load, nothing acknowledged is lost: a short run of the script."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.live import small_bundle
from support.postgres import binaries

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ["--database", "sqlite"],
        ["--database", "postgresql"],
        ["--database", "postgresql", "--victim", "database"],
    ],
)
def test_nothing_acknowledged_is_lost(settings: list[str], tmp_path: Path) -> None:
    if "postgresql" in settings:
        if binaries() is None:
            pytest.skip("PostgreSQL's initdb and postgres are not installed")
        pytest.importorskip("psycopg", reason="the extra 'postgres' is not installed")
    bundle = small_bundle(tmp_path / "bundle")
    command = [sys.executable, str(ROOT / "scripts" / "kill_serving.py"), str(bundle), *settings]
    found = subprocess.run(
        [*command, "--kills", "8", "--folder", str(tmp_path / "kills")],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert "8 kills" in found.stdout
    assert "0 lost, moved or duplicated" in found.stdout
    changes = int(found.stdout.split(" kills, ")[1].split(" ")[0].replace(",", ""))
    assert changes > 8
