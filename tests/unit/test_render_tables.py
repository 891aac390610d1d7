"""The script that brings the tables of documents up to date."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from catalex.reporting.ledger import BenchmarkLine, append

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "render_tables.py"
DOCUMENT = "# Speed\n\n<!-- table: benchmarks rows=name -->\n<!-- /table -->\n"


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, with `tmp_path` as the root of the repository."""
    spec = importlib.util.spec_from_file_location("render_tables", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    (tmp_path / "docs" / "deep").mkdir(parents=True)
    (tmp_path / "README.md").write_text(DOCUMENT)
    (tmp_path / "docs" / "deep" / "speed.md").write_text(DOCUMENT)
    line = {"name": "decode", "value": 2.1, "unit": "ms", "machine": "m", "commit": "c", "command": "x"}
    append(tmp_path / "docs" / "results" / "benchmarks.jsonl", BenchmarkLine.parse(line, "here"))
    return module


def test_all_documents_are_rendered_then_agree(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(["--check"]) == 1
    told = capsys.readouterr().err
    assert "README.md, line 4" in told
    assert "speed.md, line 4" in told
    assert (tmp_path / "README.md").read_text() == DOCUMENT, "checking changed a document"
    assert script.main([]) == 0
    assert "| decode |" in (tmp_path / "docs" / "deep" / "speed.md").read_text()
    assert script.main(["--check"]) == 0
    assert not capsys.readouterr().err


def test_an_edited_number_is_found(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script.main([])
    readme = tmp_path / "README.md"
    readme.write_text(readme.read_text().replace("2.10", "1.10"))
    assert script.main(["--check", str(tmp_path / "docs" / "deep" / "speed.md")]) == 0
    assert script.main(["--check"]) == 1
    told = capsys.readouterr().err
    assert "README.md, line 7" in told
    assert "1.10" in told


def test_wrong_queries_end_with_one_sentence(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "README.md").write_text(DOCUMENT.replace("rows=name", "rows=nane"))
    assert script.main([]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert "README.md, line 3" in told[0]
    assert "Write 'name'" in told[0]
