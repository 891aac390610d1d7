"""Schemathesis over the OpenAPI document: what it makes of every operation gets an answer as promised."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra 'serve'")
pytest.importorskip("sklearn", reason="needs the extra 'text'")
pytest.importorskip("schemathesis", reason="needs schemathesis")

from support.live import small_bundle
from support.service import running

ADMIN = "a" * 20
LEFT_OUT = "positive_data_acceptance"
"""That everything which fits the schema is accepted: names without control characters, one of two fields, and
keys of items that there are, are rules that it does not hold."""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_operation_does_what_the_document_says(tmp_path: Path) -> None:
    bundle = small_bundle(tmp_path / "models" / "shop", scratch=tmp_path / "parts")
    with running(bundle, [(ADMIN, "admin")], models=bundle.parent, timeout=60.0) as shop:
        done = subprocess.run(
            [
                sys.executable, "-m", "schemathesis.cli", "run", f"{shop.address}/openapi.json",
                "--header", f"X-API-Key: {ADMIN}", "--exclude-checks", LEFT_OUT, "--seed", "1", "--no-color",
                "--max-examples", os.environ.get("CATALEX_EXAMPLES", "30"),
            ],
            capture_output=True, text=True, timeout=800, check=False, cwd=tmp_path,
        )  # fmt: skip
        print(done.stdout[-1500:])
        assert done.returncode == 0, done.stdout[-6000:]
        assert shop.http.get("/ready").status_code == 200
