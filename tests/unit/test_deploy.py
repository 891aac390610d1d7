"""The deployment files: every command in them is one that the program takes, and they parse."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from catalex.cli import app

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def check_command(words: list[str]) -> None:
    """Parse the words after ``catalex serve``; raises what the program would tell its user."""
    serve = get_command(app).commands["serve"]  # type: ignore[attr-defined]
    context = serve.make_context("serve", words, resilient_parsing=False)
    settings = context.params["settings"] or []
    pytest.importorskip("fastapi", reason="needs the extra 'serve'")
    from catalex.serving.settings import parse_options

    given = {name: context.params[name] for name in ("store", "host", "port", "api_key_file", "models")}
    parse_options(given, settings)


def test_the_containers_command() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    assert json.loads(re.findall(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)[0]) == ["catalex", "serve"]
    check_command(json.loads(re.findall(r"^CMD (.*)$", text, re.MULTILINE)[0]))
    for source in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE):
        for name in source.split():
            assert (DEPLOY.parent / name).exists(), name


def test_the_composition() -> None:
    found = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    (script,) = found["services"]["catalex"]["command"]
    (call,) = re.findall(r"exec catalex serve (.*)", script.replace("\n", " "))
    check_command(shlex.split(call))
    assert (DEPLOY / found["services"]["catalex"]["build"]["context"] / "deploy/Dockerfile").exists()
    for service in found["services"].values():
        assert set(service.get("secrets", [])) <= set(found["secrets"])


def test_the_unit() -> None:
    found = configparser.RawConfigParser(strict=False)
    found.optionxform = str  # type: ignore[assignment, method-assign]
    found.read(DEPLOY / "catalex.service")
    words = shlex.split(found["Service"]["ExecStart"])
    assert words[:2] == ["/opt/catalex/bin/catalex", "serve"]
    check_command(words[2:])


def test_the_unit_in_the_eyes_of_systemd(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    text = (DEPLOY / "catalex.service").read_text().replace("/opt/catalex/bin/catalex", "/bin/true")
    (tmp_path / "catalex.service").write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / "catalex.service")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "catalex.service" not in done.stderr, done.stderr
