"""Machine, commit and command of a measurement."""

from __future__ import annotations

from pathlib import Path

import pytest

from catalex.reporting import provenance


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["/usr/bin/catalex", "run", "quick.yaml", "--seed", "1 2"], "catalex run quick.yaml --seed '1 2'"),
        (["/x/catalex/__main__.py", "report"], "python -m catalex report"),
        (["{here}/benchmarks/decode.py", "--out={here}/a/b"], "python benchmarks/decode.py --out=a/b"),
        (["catalex", "embed", "/secret/place/beauty", "data=/secret/x"], "catalex embed beauty data=x"),
    ],
)
def test_commands_can_be_pasted_and_tell_no_folders(
    argv: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [part.format(here=tmp_path) for part in argv])
    assert provenance.command_line() == said


def test_machine_names_cores() -> None:
    assert " cores" in provenance.machine_name()


@pytest.mark.parametrize(
    ("status", "head", "said"),
    [("", "0123abc", "0123abc"), (" M src/catalex/types.py", "0123abc", "0123abc+"), ("", None, "unknown")],
)
def test_commit_of_the_repository(
    status: str, head: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CATALEX_COMMIT", raising=False)
    root = str(Path(provenance.__file__).resolve().parents[3])

    def git(folder: Path, *arguments: str) -> str | None:
        answers = {"--show-toplevel": root, "--short": head, "--porcelain": status}
        return answers[arguments[1]]

    monkeypatch.setattr(provenance, "_git", git)
    assert provenance.commit_id() == said


def test_a_foreign_repository_says_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CATALEX_COMMIT", raising=False)
    monkeypatch.setattr(provenance, "_git", lambda folder, *arguments: str(tmp_path))
    assert provenance.commit_id() == "unknown"
    monkeypatch.setenv("CATALEX_COMMIT", "cafe123")
    assert provenance.commit_id() == "cafe123"
