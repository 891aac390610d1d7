"""Where a number comes from: the machine, the commit and the command that made it."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

COMMIT_VARIABLE = "CATALEX_COMMIT"
"""Environment variable that names the commit where no git repository is at hand (a container, a copy)."""

_NOT_CODE = (":(exclude)docs", ":(exclude)*.md")
"""Paths whose changes cannot change a result. Without this, the ledger would make its own tree dirty."""


def now() -> str:
    """The time in UTC, to the second, as ISO 8601 (``2026-01-31T12:00:00Z``)."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def machine_name() -> str:
    """CPU model with its cores and, if any, the GPU: ``"AMD EPYC 7B13, 2 cores; 1 x NVIDIA H100"``."""
    return "; ".join(filter(None, [f"{_cpu_model()}, {_cores()} cores", _gpu()]))


def commit_id() -> str:
    """Short commit of the running source, with ``+`` appended when its code was changed since.

    `CATALEX_COMMIT` overrides it. Without that and without a git repository of catalex itself: ``"unknown"``.
    Changes of documents do not count, they cannot change a number.
    """
    given = os.environ.get(COMMIT_VARIABLE, "").strip()
    if given:
        return given
    here = Path(__file__).resolve()
    root = _git(here.parent, "rev-parse", "--show-toplevel")
    # An installed catalex may lie inside somebody else's repository, whose commit would say nothing about it.
    if root is None or not (Path(root) / "src" / "catalex" / "reporting" / here.name).is_file():
        return "unknown"
    commit = _git(Path(root), "rev-parse", "--short", "HEAD")
    if commit is None:
        return "unknown"
    return commit + ("+" if _git(Path(root), "status", "--porcelain", "--", ".", *_NOT_CODE) else "")


def command_line() -> str:
    """The command that runs now, ready to paste; paths outside the working folder lose their folder."""
    program, *arguments = sys.argv or ["python"]
    name = Path(program).name
    if name == "__main__.py":
        words = ["python", "-m", Path(program).parent.name]
    elif name.endswith(".py"):
        words = ["python", _public(program)]
    else:
        words = [name]
    return shlex.join([*words, *map(_public, arguments)])


def _public(argument: str) -> str:
    """The argument with an absolute path made relative: no table tells how a machine's disk is laid out."""
    key, mark, value = argument.rpartition("=")
    if not value.startswith("/"):
        return argument
    path, here = Path(value), Path.cwd()
    return key + mark + (str(path.relative_to(here)) if path.is_relative_to(here) else path.name)


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command that only reads, or None when there is no git, no repository or no commit."""
    try:
        # No optional locks: a status must never stand in the way of somebody's commit.
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(folder), *arguments],
            capture_output=True, text=True, check=True, timeout=20,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    except OSError:
        pass  # Not Linux.
    return platform.processor() or platform.machine() or "unknown CPU"


def _cores() -> int:
    """Cores this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpu() -> str:
    """Number and name of the CUDA devices, or an empty string."""
    import torch

    if not torch.cuda.is_available():
        return ""
    return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
