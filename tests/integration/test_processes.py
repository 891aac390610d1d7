"""Two processes tell the story of one, and end together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from catalex.artifacts import outputs_of, read_arrays, read_parquet
from catalex.errors import EXIT_CODE

DRIVER = Path(__file__).resolve().parents[1] / "support" / "several.py"
UTGREC = (
    "{name: utgrec, encoder: {name: frozen, width: 16}, root: 6, leaf: 8, code_width: 4, "
    "projection_hidden: 16, dropout: 0.0, learning_rate: 0.003, batch: 15, epochs: 3, fine_tune_epochs: 2, "
    "quantizer_warmup: 2, revive_every: 5, checkpoint_seconds: 0}"
)
CALM = ("recommender.model.dropout=0", "baselines.sasrec.dropout=0", "recommender.training.epochs=2")
"""Without dropout, which each process draws for itself, results are those of one process. The last batch of
an epoch is not full, so that shares count unequally."""
BRIEF = (
    *CALM,
    f"tokenizer={UTGREC}",
    "tokenize.adapt={year-two: projection}",
    "evaluate.baselines=[popularity]",
    "transfer.starts=[pretrained]",
)
SHARED_WEIGHTS = (
    "tokenize/tokenizer",
    "tokenize/adapted/year-two",
    "pretrain/seed-0/recommender/model",
    "transfer/year-two/pretrained/seed-0/recommender/model",
)

SINGLE_WEIGHTS = (
    "transfer/year-two/scratch/seed-0/recommender/model",
    "baselines/year-two/sasrec/seed-0/recommender",
)

Outcome = dict[str, list[Any]]


def several(*commands: dict[str, Any]) -> list[Outcome]:
    """What `tests/support/several.py` makes of commands, each in two processes."""
    done = subprocess.run(
        [sys.executable, str(DRIVER)],
        input=json.dumps([{**command, "folder": str(command["folder"])} for command in commands]),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[Outcome] = json.loads(done.stdout)
    return found


def arguments(verb: str, recipe: Path, overrides: tuple[str, ...]) -> list[str]:
    return [verb, str(recipe), *(part for one in overrides for part in ("--set", one))]


def assert_whole(run: Path) -> None:
    """Every stage is finished, and nothing half-written or partial is left."""
    stages = sorted(path.parent for path in run.rglob("stage.json"))
    assert len(stages) >= 10
    for stage in stages:
        if stage.parent.name != "bundle":
            assert outputs_of(stage, stage.relative_to(run).parts[0])
        assert not (stage / "partial").exists(), stage
    assert not list(run.rglob("*.tmp"))


def assert_like(one: Path, two: Path, weights: tuple[str, ...]) -> None:
    """The same files; identifiers are equal, weights up to rounding, metrics up to a near-tie."""

    def names(run: Path) -> set[Path]:
        return {path.relative_to(run) for path in run.rglob("*") if path.is_file()}

    assert names(one) == names(two)
    tables = [read_parquet(run / "tokenize/identifiers.parquet", ["item_id", "codes"]) for run in (one, two)]
    assert tables[0].equals(tables[1])
    compared = [path for folder in weights for path in sorted((one / folder).glob("*.safetensors"))]
    assert len(compared) >= len(weights)
    for path in compared:
        expected, found = read_arrays(path), read_arrays(two / path.relative_to(one))
        assert expected.keys() == found.keys()
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, atol=1e-4, err_msg=f"{path}: {name}")


def test_utgrec_and_t5_by_two_processes_are_those_of_one(recipe: Path, run_story, tmp_path: Path) -> None:
    """Tokenizer and recommenders are trained together, all else by the main process, which alone speaks. A
    second command finds everything done; a stage that the main process cannot write ends both."""
    two = tmp_path / "two"
    run = arguments("run", recipe, BRIEF)
    (tmp_path / "hindered" / "run" / "embed" / "year-two" / "vectors.safetensors").mkdir(parents=True)
    first, again, hindered = several(
        {"folder": two, "arguments": run},
        {"folder": two, "arguments": run},
        {"folder": tmp_path / "hindered", "arguments": run},
    )
    assert first["codes"] == again["codes"] == [0, 0], first["said"]
    assert first["said"][0].count("tokenize with utgrec trained on year-one, year-two, adapted") == 1
    assert "train fine-tune UTGRec on year-two: 8/8 steps" in first["said"][0]
    assert "report: run/report" in first["printed"][0]
    assert first["printed"][1] == ""
    assert "running" not in again["said"][0]
    assert again["said"][0].count("unchanged, skipped") >= 10
    for outcome in (first, again):
        assert "year-" not in outcome["said"][1]
    assert_whole(two / "run")
    assert_like(run_story(tmp_path / "one", *BRIEF) / "run", two / "run", SHARED_WEIGHTS)

    assert hindered["codes"] == [EXIT_CODE, EXIT_CODE]
    assert "catalex: run/embed/year-two/vectors.safetensors: a file stands" in hindered["said"][0]
    assert "catalex:" not in hindered["said"][1]
    assert "Traceback" not in "".join(hindered["said"])


@pytest.mark.slow
def test_rqkmeans_and_sasrec_by_two_processes_are_those_of_one(
    recipe: Path, run_story, tmp_path: Path
) -> None:
    # At the story's own rate the input of one ReLU is -2.7e-7 in step 5 of the transfer. Its sign is a matter
    # of rounding, and so of the rows of a batch; with it turned, one process gives what two give (to 1e-7).
    calm = (*CALM, "recommender.training.learning_rate=0.002")
    (outcome,) = several({"folder": tmp_path / "two", "arguments": arguments("run", recipe, calm)})
    assert outcome["codes"] == [0, 0], outcome["said"]
    one, two = run_story(tmp_path / "one", *calm) / "run", tmp_path / "two" / "run"
    assert_whole(two)
    assert_like(one, two, (*SHARED_WEIGHTS[:1], *SHARED_WEIGHTS[2:], *SINGLE_WEIGHTS))


@pytest.mark.slow
def test_the_main_process_killed_again_and_again(
    recipe: Path, kill_resume: ModuleType, tmp_path: Path
) -> None:
    """Dropout included, the rest of the processes' work ends at the bytes of an undisturbed run."""
    run = arguments("run", recipe, BRIEF[-4:])
    numbers = range(4, 60, 11)
    kills = [{"folder": tmp_path / "rough", "arguments": run, "die_at": number} for number in numbers]
    calm, *killed, last = several(
        {"folder": tmp_path / "calm", "arguments": run},
        *kills,
        {"folder": tmp_path / "rough", "arguments": run},
    )
    assert calm["codes"] == last["codes"] == [0, 0]
    assert sum(outcome["codes"][0] == -9 for outcome in killed) >= 4
    for outcome in killed:
        assert outcome["codes"] == [0, 0] or outcome["codes"][1] not in (0, -9), outcome["codes"]
    assert ": resuming at" in "".join(outcome["said"][0] for outcome in killed)
    for stage in kill_resume.STAGES:
        count, different = kill_resume.compare(tmp_path / "calm" / "run", tmp_path / "rough" / "run", stage)
        assert count > 0, f"nothing to compare in {stage}"
        assert different == []


TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2")
ACCELERATE = (
    *("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "29613"),
)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_launchers(launcher: tuple[str, ...], recipe: Path, tmp_path: Path) -> None:
    """A verb whose stage was not run is refused, once; then the story is told up to the identifiers."""

    def launch(verb: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", *launcher, "-m", "catalex", *arguments(verb, recipe, BRIEF)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        )

    refused = launch("tokenize")
    assert refused.returncode != 0
    assert refused.stderr.count("catalex: run/embed/year-one: stage 'embed' has not been run") == 1
    for verb in ("prepare", "embed", "tokenize"):
        told = launch(verb)
        assert told.returncode == 0, told.stderr[-3000:]
    assert told.stderr.count("tokenize with utgrec") == 1
    assert told.stdout.count("identifiers") == 1
    assert outputs_of(tmp_path / "run" / "tokenize", "tokenize")
