"""Two services on one PostgreSQL follow each other, and outlive it: a short run of the script."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra 'serve'")
pytest.importorskip("sklearn", reason="needs the extra 'text'")
pytest.importorskip("psycopg", reason="the extra 'postgres' is not installed")

from support.live import small_bundle
from support.postgres import binaries

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.skipif(binaries() is None, reason="PostgreSQL's initdb and postgres are not installed")
def test_each_follows_the_other_within_a_second_and_both_outlive_the_database(tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path / "shop")
    found = subprocess.run(
        [
            sys.executable, str(ROOT / "scripts" / "replicas.py"), str(bundle),
            "--changes", "8", "--outage", "3", "--limit", "3",
        ],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
    assert "8 items followed" in found.stdout
    assert found.stdout.rstrip().endswith("0 lost, moved or otherwise wrong")
    assert len(re.findall(r"database (?:stopped|killed) for 3 s", found.stdout)) == 2
