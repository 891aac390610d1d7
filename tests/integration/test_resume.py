"""A run that is killed again and again ends at the bytes of one that nobody disturbed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from catalex.artifacts import Stage, write_json
from catalex.pipelines.workspace import running

DRIVER = Path(__file__).resolve().parents[1] / "support" / "die_at_write.py"
RQVAE = "{name: rqvae, levels: 3, codebook_size: 8, hidden: [16], latent: 8, epochs: 6, checkpoint_every: 2}"


def _die_at_writes(recipe: Path, folder: Path, step: int) -> tuple[int, str]:
    """Number of kills until the run finished in `folder`, and what the processes said."""
    found = subprocess.run(
        [sys.executable, str(DRIVER), str(recipe), str(step)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert found.returncode == 0, found.stderr[-2000:]
    return int(found.stdout), found.stderr


def _assert_same(kill_resume: ModuleType, one: Path, two: Path) -> None:
    for stage in kill_resume.STAGES:
        count, different = kill_resume.compare(one / "run", two / "run", stage)
        assert count > 0, f"nothing to compare in {stage}"
        assert different == []


def test_killed_at_growing_numbers_of_writes(
    recipe: Path, finished: Path, kill_resume: ModuleType, tmp_path: Path
) -> None:
    kills, _ = _die_at_writes(recipe, tmp_path, 7)
    assert kills >= 3
    _assert_same(kill_resume, finished, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", [None, RQVAE], ids=["rqkmeans", "rqvae"])
def test_killed_at_every_number_of_writes(
    tokenizer: str | None, recipe: Path, kill_resume: ModuleType, run_story, tmp_path: Path
) -> None:
    own = tmp_path / recipe.name
    text = recipe.read_text(encoding="utf-8")
    if tokenizer is not None:
        text = text.replace(
            "tokenizer:\n  name: rqkmeans\n  levels: 3\n  codebook_size: 8", f"tokenizer: {RQVAE}"
        )
        assert RQVAE in text
    own.write_text(text, encoding="utf-8")
    calm = run_story(tmp_path / "calm", *([f"tokenizer={tokenizer}"] if tokenizer else []))
    rough = tmp_path / "rough"
    rough.mkdir()
    kills, said = _die_at_writes(own, rough, 1)
    assert kills >= 12
    assert ": resuming at" in said
    _assert_same(kill_resume, calm, rough)


@pytest.mark.slow
def test_the_tool_kills_every_stage_and_finds_no_difference(
    recipe: Path, kill_resume: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = kill_resume.main([str(recipe), "--kills", "9", "--folder", str(tmp_path)])
    printed = capsys.readouterr().out
    assert status == 0, printed
    for stage in kill_resume.STAGES:
        assert f"| {stage} | " in printed
    assert "never hit" not in printed


def test_the_judge_sees_a_changed_byte_a_missing_file_and_a_leftover(
    finished: Path, kill_resume: ModuleType, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    _assert_same(kill_resume, finished, copy)
    weights = copy / "run" / "tokenize" / "tokenizer" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    (copy / "run" / "evaluate" / "summary.json").unlink()
    (copy / "run" / "prepare" / "year-one" / ".items.parquet.x.tmp").touch()

    def different(stage: str) -> list[str]:
        return kill_resume.compare(finished / "run", copy / "run", stage)[1]

    assert different("tokenize") == ["tokenize/tokenizer/model.safetensors"]
    assert different("evaluate") == ["evaluate/summary.json"]
    assert different("prepare") == ["prepare/year-one/.items.parquet.x.tmp"]
    assert different("embed") == []


def test_the_judge_ignores_wall_times_only(finished: Path, kill_resume: ModuleType) -> None:
    present = {path.name for path in (finished / "run").rglob("*") if path.is_file()}
    compared = {
        Path(name).name
        for stage in kill_resume.STAGES
        for name in kill_resume.files_of(finished / "run", stage)
    }
    reports = {path.name for path in (finished / "run" / "report").rglob("*")}
    assert present - compared == {"timing.json", "training_time.json"} | reports


def test_kills_are_planned_in_every_stage_and_by_seed(kill_resume: ModuleType) -> None:
    pieces = [kill_resume.Announced(f"{verb} x", seconds) for verb, seconds in (
        ("prepare", 0.1), ("embed", 1.0), ("tokenize", 2.0), ("pretrain", 30.0), ("transfer", 9.0),
        ("baseline", 3.0), ("evaluate", 4.0), ("bundle", 0.2),
    )]  # fmt: skip
    plan = kill_resume.plan_kills(pieces, 20, 5)
    assert sum(len(moments) for moments in plan.values()) == 20
    assert {piece.title for piece in pieces} == set(plan)
    for piece in pieces:
        assert sum(plan[piece.title]) <= kill_resume.LATEST * piece.seconds
    assert plan == kill_resume.plan_kills(pieces, 20, 5)
    assert plan != kill_resume.plan_kills(pieces, 20, 6)


def test_a_stage_killed_in_its_second_run_does_not_pass_for_done(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "embed", {"width": 1})
    with running(stage, "embed"):
        write_json(tmp_path / "out.json", 1)
        stage.finish(["out.json"])
    assert Stage(tmp_path, "embed", {"width": 1}).done
    (tmp_path / ".out.json.abc.tmp").touch()
    second = Stage(tmp_path, "embed", {"width": 2})
    with pytest.raises(KeyboardInterrupt), running(second, "embed"):
        raise KeyboardInterrupt
    assert not (tmp_path / "stage.json").exists()
    assert not (tmp_path / ".out.json.abc.tmp").exists()
