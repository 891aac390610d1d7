"""Prove that a killed run, started again, ends at the bytes of a run that nobody disturbed.

    python scripts/kill_resume.py                        # the packaged sample, small models, 12 kills
    python scripts/kill_resume.py --kills 20 --seed 3 --set tokenizer.name=rqvae

A recipe runs once undisturbed. Then it runs in a second workspace, where SIGKILL ends the process at seeded
random moments inside every stage; each time the same command is given again, until it finishes. In the end
the SHA-256 of every file of every stage is compared, and what one workspace has and the other lacks counts as
a difference.

Both runs use relative folders (``run`` and ``cache``) below a folder of their own, so that even the recipe
inside the bundle is equal. Not compared, on purpose: ``timing.json`` and ``training_time.json`` (wall
seconds) and the report (date, machine, command and seconds stand in it). Exits with 1 when a file differs or
a stage was never hit.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import queue
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from catalex.artifacts import STAGE_FILE, hash_file

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("prepare", "embed", "tokenize", "pretrain", "transfer", "baselines", "evaluate", "bundle")
"""Folders of a workspace that are compared."""
NOT_COMPARED = ("timing.json", "training_time.json")
"""Wall seconds: facts of a run, but not reproducible ones."""
SMALL = (
    "domains.year-one.max_history=12",
    "domains.year-two.max_history=12",
    "recommender.model={preset: mini, layers: 1}",
    "recommender.beam=10",
    "recommender.validation_beam=10",
    "recommender.validation_users=100",
    "recommender.max_history=5",
    "recommender.training.checkpoint_seconds=0.3",
    "pretrain.training={epochs: 2}",
    "transfer.training={epochs: 2}",
    "baselines.sasrec={epochs: 3, learning_rate: 0.003, checkpoint_seconds: 0.3}",
)
"""Settings laid over recipes/demo.yaml: the same story, small, with many checkpoints for kills to meet."""
RUNNING = ": running"
"""Ends the line by which a stage says that it begins."""
LATEST = 0.8
"""Kills fall in the first four fifths of a piece's undisturbed time, so that few of them miss it."""


def stage_of(title: str) -> str:
    """The folder in the workspace of a piece of work, from its title."""
    verb = title.split()[0]
    return "baselines" if verb == "baseline" else verb


@dataclass(frozen=True)
class Announced:
    """A piece of work that the run announced, such as "embed year-one with minilm", and how long it took."""

    title: str
    seconds: float

    @property
    def stage(self) -> str:
        """Its folder in the workspace."""
        return stage_of(self.title)


@dataclass
class Attempt:
    """One process: what it announced, when, and how it ended (-9 after a kill)."""

    announced: list[tuple[str, float]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    ended: float = 0.0
    status: int = 0
    killed_in: str | None = None


Plan = dict[str, list[float]]
"""Title of a piece of work (or stage, after a miss) -> when kills come, in seconds after its announcement."""


def attempt(command: Sequence[str], folder: Path, plan: Plan) -> Attempt:
    """Run `command` in `folder` until it ends or a kill of `plan` is due; that kill is taken off the plan."""
    found, stage, moment = Attempt(), "", 0.0
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        lines: queue.Queue[str | None] = queue.Queue()
        reader = threading.Thread(target=_read, args=(process, lines), daemon=True)
        reader.start()
        due = None
        while True:
            try:
                line = lines.get(timeout=None if due is None else max(0.0, due - time.monotonic()))
            except queue.Empty:
                os.kill(process.pid, signal.SIGKILL)
                found.killed_in = found.announced[-1][0]
                break
            if line is None:
                break
            found.lines.append(line)
            if line.endswith(RUNNING):
                title, now = line.removesuffix(RUNNING), time.monotonic()
                found.announced.append((title, now))
                if due is not None:  # missed: the next piece of that stage gets the kill, and sooner
                    plan.setdefault(stage, []).append(moment / 3)
                stage, due = stage_of(title), None
                moments = plan.get(title) or plan.get(stage)
                if moments:
                    moment = moments.pop(0)
                    due = now + moment
        found.status = process.wait()
        reader.join()
        found.ended = time.monotonic()
    return found


def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        lines.put(line.rstrip("\n"))
    lines.put(None)


def undisturbed(command: Sequence[str], folder: Path) -> list[Announced]:
    """Run to the end without a kill; returns the pieces of work in order, with their seconds."""
    found = attempt(command, folder, {})
    if found.status != 0:
        raise SystemExit("kill_resume: the undisturbed run failed:\n" + "\n".join(found.lines[-20:]))
    titles, times = zip(*found.announced, strict=True)
    ends = [*times[1:], found.ended]
    pieces = []
    for title, begin, end in zip(titles, times, ends, strict=True):
        seconds = end - begin
        if title.startswith("bundle "):  # after the last bundle comes the report, which announces nothing
            timing = folder / "run" / "bundle" / f"{title.removeprefix('bundle ')}.stage" / "timing.json"
            seconds = json.loads(timing.read_text())["seconds_by_run"][-1]
        pieces.append(Announced(title, seconds))
    return pieces


def plan_kills(pieces: Sequence[Announced], kills: int, seed: int) -> Plan:
    """At least one kill in every stage, the others where most time goes; kills of a piece share its time."""
    random_ = random.Random(seed)
    by_stage = {stage: [p for p in pieces if p.stage == stage] for stage in STAGES}
    present = [stage for stage in STAGES if by_stage[stage]]
    chosen = [
        random_.choices(by_stage[stage], [piece.seconds for piece in by_stage[stage]])[0] for stage in present
    ]
    weights = [piece.seconds for piece in pieces]
    chosen += random_.choices(list(pieces), weights, k=max(0, kills - len(present)))
    counts = Counter(piece.title for piece in chosen)
    seconds = {piece.title: piece.seconds for piece in pieces}
    return {
        title: [random_.uniform(0, LATEST * seconds[title] / count) for _ in range(count)]
        for title, count in counts.items()
    }


def disturbed(command: Sequence[str], folder: Path, plan: Plan) -> Iterator[Attempt]:
    """Give the command again and again until it ends by itself; yields every attempt, the last unkilled."""
    remaining = {title: list(moments) for title, moments in plan.items()}
    while True:
        found = attempt(command, folder, remaining)
        yield found
        if found.killed_in is None:
            if found.status != 0:
                raise SystemExit("kill_resume: the run failed after a kill:\n" + "\n".join(found.lines[-20:]))
            return


def files_of(workspace: Path, stage: str) -> dict[str, str]:
    """SHA-256 of every compared file of a stage's folder, leftovers included, checked with its stage.json."""
    folder = workspace / stage
    found = {
        path.relative_to(folder).as_posix(): hash_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in NOT_COMPARED
    }
    for record in folder.rglob(STAGE_FILE):
        for name, digest in json.loads(record.read_text())["outputs"].items():
            own = Path(os.path.normpath(record.parent / name)).relative_to(folder).as_posix()
            if found.get(own) != digest:
                found[own] = f"not what {STAGE_FILE} says"
    return found


def compare(one: Path, two: Path, stage: str) -> tuple[int, list[str]]:
    """Number of files of a stage in either workspace, and the names of those that are not equal in both."""
    left, right = files_of(one, stage), files_of(two, stage)
    names = sorted({*left, *right})
    return len(names), [f"{stage}/{name}" for name in names if left.get(name) != right.get(name)]


def command_for(recipe: Path, settings: Sequence[str]) -> list[str]:
    """The command line of both runs; its folders are relative to where it is started."""
    own = ("workspace=run", "cache=cache")
    overrides = [part for setting in (*settings, *own) for part in ("--set", setting)]
    return [sys.executable, "-m", "catalex", "run", str(recipe.resolve()), *overrides]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both, compare, print the table; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", nargs="?", type=Path, help="YAML file; default: the demo with small models")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--kills", type=int, default=12, help="kills in all, at least one a stage")
    parser.add_argument("--seed", type=int, default=0, help="of the kill moments")
    parser.add_argument("--folder", type=Path, default=Path("runs/kill-resume"), help="emptied first")
    given = parser.parse_args(arguments)
    recipe = given.recipe or ROOT / "recipes" / "demo.yaml"
    settings = [*(SMALL if given.recipe is None else ()), *given.settings]
    command = command_for(recipe, settings)
    calm, rough = given.folder / "undisturbed", given.folder / "killed"
    for folder in (calm, rough):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}", flush=True)
    pieces = undisturbed(command, calm)
    print(f"undisturbed: {len(pieces)} pieces of work in {sum(p.seconds for p in pieces):.1f} s", flush=True)

    plan = plan_kills(pieces, given.kills, given.seed)
    hits: Counter[str] = Counter()
    resumed = 0
    for found in disturbed(command, rough, plan):
        resumed += sum(": resuming at" in line for line in found.lines)
        if found.killed_in is not None:
            piece = Announced(found.killed_in, found.ended - found.announced[-1][1])
            hits[piece.stage] += 1
            print(
                f"kill {hits.total():2}: {piece.seconds:6.2f} s after the start of: {piece.title}", flush=True
            )
    print(f"finished after {hits.total()} kills; {resumed} trainings went on from a checkpoint\n")

    print("| stage | kills | files compared | identical |\n|---|---:|---:|---|")
    failed, total = False, 0
    for stage in STAGES:
        count, different = compare(calm / "run", rough / "run", stage)
        if not count:
            continue
        total += count
        missed = any(piece.stage == stage for piece in pieces) and not hits[stage]
        failed = failed or bool(different) or missed
        verdict = "yes" if not different else "NO: " + ", ".join(different)
        print(f"| {stage} | {hits[stage]}{' (never hit)' if missed else ''} | {count} | {verdict} |")
    print(f"| all | {hits.total()} | {total} | {'no' if failed else 'yes'} |")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
