"""The command line: every verb explains itself, calls its pipeline, and turns mistakes into a sentence."""

from __future__ import annotations

import errno
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

import catalex
from catalex import processes
from catalex.bundle import Bundle, Suggestion
from catalex.cli import STAGES, app, main
from catalex.errors import EXIT_CODE, user_error

RECIPE = "name: mini\ndomains:\n  toys: {source: canonical, options: {folder: data/toys}}\n"
VERBS = {
    "run": "pipelines.run.run_recipe",
    "prepare": "pipelines.prepare.prepare_stage",
    "embed": "pipelines.embed.embed_stage",
    "tokenize": "pipelines.tokenize.tokenize_stage",
    "pretrain": "pipelines.pretrain.pretrain_stage",
    "transfer": "pipelines.pretrain.transfer_stage",
    "evaluate": "pipelines.evaluate.evaluate_stage",
    "report": "pipelines.report.report_stage",
    "bundle": "pipelines.bundle.bundle_stage",
}
PRINTERS = (
    "data.statistics.print_statistics",
    "pipelines.tokenize.print_health",
    "pipelines.evaluate.print_summary",
    "pipelines.run.print_outcome",
)


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "mini.yaml"
    path.write_text(RECIPE)
    return str(path)


def replace(monkeypatch: pytest.MonkeyPatch, name: str, value: Any) -> None:
    module, _, function = f"catalex.{name}".rpartition(".")
    monkeypatch.setattr(importlib.import_module(module), function, value)


def call(*words: str) -> Any:
    return CliRunner().invoke(app, list(words), catch_exceptions=False)


def call_main(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["catalex", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def paths(command: Any, before: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Words that lead to every verb, groups included."""
    inner = getattr(command, "commands", {})
    return [before, *(path for name, c in inner.items() for path in paths(c, (*before, name)))]


@pytest.mark.parametrize("words", paths(get_command(app)), ids=" ".join)
def test_every_verb_has_help(words: tuple[str, ...]) -> None:
    done = call(*words, "--help")
    assert done.exit_code == 0
    assert "Usage" in done.output
    command: Any = get_command(app)
    for word in words:
        command = command.commands[word]
    assert command.help, f"{' '.join(words)} says nothing about itself"
    for parameter in command.params:
        assert parameter.name == "help" or parameter.help, f"{' '.join(words)} {parameter.name}"


def test_the_version() -> None:
    done = call("--version")
    assert (done.exit_code, done.output) == (0, f"catalex {catalex.__version__}\n")


def test_every_verb_over_a_recipe_is_tested() -> None:
    command: Any = get_command(app)
    over_recipes = {n for n, c in command.commands.items() if any(p.name == "recipe" for p in c.params)}
    assert over_recipes == set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_calls_its_pipeline_with_the_recipe(
    verb: str, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[tuple[Any, ...]] = []

    def pipeline(*values: Any) -> list[Path]:
        called.append(values)
        return []

    for name in PRINTERS:
        replace(monkeypatch, name, lambda *_: None)
    replace(monkeypatch, VERBS[verb], pipeline)
    done = call(verb, recipe, "--set", "seeds=[3]", "--set", "note=hello")
    assert done.exit_code == 0
    assert len(called) == 1
    assert called[0][0].name == "mini"
    assert (called[0][0].seeds, called[0][0].note) == ([3], "hello")
    assert all(value is None for value in called[0][1:])


@pytest.mark.parametrize("verb", ["run", "evaluate"])
def test_results_are_recorded_only_when_asked_for(
    verb: str, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledgers: list[Path | None] = []
    replace(monkeypatch, VERBS[verb], lambda _, ledger: ledgers.append(ledger))
    for name in PRINTERS:
        replace(monkeypatch, name, lambda *_: None)
    call(verb, recipe)
    call(verb, recipe, "--ledger", str(tmp_path / "l.jsonl"))
    call(verb, recipe, "--record", "--ledger", str(tmp_path / "l.jsonl"))
    assert ledgers == [None, None, tmp_path / "l.jsonl"]


class FakeBundle:
    titles = ("Soap", "Brush\x1b[2J\nbroken", "Comb")

    def item(self, name: str) -> int:
        return {"B0": 0, "#1": 1}[name]

    def recommend(self, items: list[int], k: int, *, exclude_history: bool) -> list[Suggestion]:
        assert (items, k) == ([0, 1], 2)
        found = [Suggestion(2, "Comb", -0.25, (1, 2)), Suggestion(1, self.titles[1], -3.0, (1, 3))]
        return found[:1] if exclude_history else found


def test_recommending_for_the_eye_and_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bundle, "load", lambda folder: FakeBundle())
    shown = call("recommend", "folder", "--history", "B0, #1", "-k", "2").output
    assert shown.splitlines()[1].strip() == "Soap"
    assert "  -0.250  Comb  <1-2>" in shown
    assert "\x1b" not in shown
    found = json.loads(call("recommend", "folder", "--history", "B0,#1", "-k", "2", "--json").output)
    assert found[0] == {"item_id": 2, "title": "Comb", "score": -0.25, "identifier": [1, 2]}
    only = call("recommend", "folder", "--history", "B0,#1", "-k", "2", "--json", "--new-only").output
    assert [row["item_id"] for row in json.loads(only)] == [2]


def test_images_of_a_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(folder: Path, *, size: int, allow_local: bool) -> str:
        return f"{folder} {size} {allow_local}"

    replace(monkeypatch, "pipelines.images.fetch_domain_images", fetch)
    assert call("data", "images", "toys").output == "toys 224 False\n"
    assert call("data", "images", "toys", "--size", "64", "--allow-local").output == "toys 64 True\n"


# --- mistakes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", ["0", "1"])
def test_of_several_processes_the_main_one_prints_and_runs_what_is_no_stage(
    recipe: str, monkeypatch: pytest.MonkeyPatch, rank: str
) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", rank), ("LOCAL_RANK", rank)):
        monkeypatch.setenv(name, value)
    main_one = rank == "0"
    assert bool(call("data", "list").output) == main_one
    called: list[str] = []
    replace(monkeypatch, "pipelines.report.report_stage", lambda parsed: called.append(parsed.name))
    assert call("report", recipe).output == ("report: None\n" if main_one else "")
    assert called == ["mini"]
    assert set(STAGES) == set(VERBS)


def test_the_main_process_has_a_head_start_in_telling_what_is_wrong(
    recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    replace(monkeypatch, "pipelines.report.report_stage", failing(user_error("no")))
    for rank, pauses in (("0", []), ("1", [processes.GRACE])):
        for name, value in (("WORLD_SIZE", "2"), ("RANK", rank), ("LOCAL_RANK", rank)):
            monkeypatch.setenv(name, value)
        assert call_main(monkeypatch, "report", recipe) == EXIT_CODE
        assert capsys.readouterr().err == "catalex: no.\n"
        assert slept == pauses


def failing(error: BaseException) -> Any:
    def pipeline(*values: Any) -> None:
        raise error

    return pipeline


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (user_error("it is broken", place="toys", remedy="mend it"), 2, "toys: it is broken. Mend it."),
        (OSError(errno.ENOSPC, "no"), 2, "the disk is full"),
        (KeyboardInterrupt(), 130, "run the same command again to continue"),
    ],
)
def test_a_failure_is_one_line_and_an_exit_code(
    error: BaseException,
    code: int,
    words: str,
    recipe: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    replace(monkeypatch, VERBS["embed"], failing(error))
    assert call_main(monkeypatch, "embed", recipe) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert [line for line in printed.err.splitlines() if line.strip()][-1].startswith("catalex: ")
    assert words in printed.err
    assert "Traceback" not in printed.err


def test_a_fault_of_ours_keeps_its_traceback(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    replace(monkeypatch, VERBS["embed"], failing(ZeroDivisionError()))
    monkeypatch.setattr(sys, "argv", ["catalex", "embed", recipe])
    with pytest.raises(ZeroDivisionError):
        main()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("emded", "x.yaml"), "No such command 'emded'"),
        (("embed",), "Missing argument 'RECIPE'"),
        (("embed", "x.yaml", "--sett", "a=1"), "No such option"),
        (("recommend", "folder", "--history", "a", "-k", "many"), "Invalid value for '-k'"),
    ],
)
def test_a_mistake_in_the_command_is_one_line_with_a_remedy(
    words: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call_main(monkeypatch, *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert "--help' for what it takes" in line


def test_success_exits_with_0(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call_main(monkeypatch, "data", "list") == 0
    assert "amazon-2023" in capsys.readouterr().out


def test_doctor_fails_when_something_is_wrong(tmp_path: Path) -> None:
    done = call("doctor", str(tmp_path))
    assert done.exit_code == 2
    assert "WRONG" in done.output
    assert "neither a bundle nor a prepared domain" in done.output


def test_typer_is_told_to_leave_exceptions_alone() -> None:
    assert isinstance(app, typer.Typer)
    assert app.pretty_exceptions_enable is False
