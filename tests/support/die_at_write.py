"""Run a recipe in processes that kill themselves at a write: the first at its 1st, the next at its 2nd, ..

    python die_at_write.py RECIPE [STEP]

Every file of a run becomes whole by `os.replace`, so a kill just before or just after one is a kill at the
worst moment; the two alternate. Processes are forks of one that has imported everything, so each costs what
the work costs. The write numbers grow by STEP, therefore the run gets further and in the end finishes. Prints
the number of kills.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import sklearn.utils.extmath  # noqa: F401 - as the next: imported once, not in each fork

import catalex.data.prepare  # noqa: F401
import catalex.pipelines.run as story
from catalex.pipelines.recipe import read_recipe


def die_at(number: int, *, before: bool) -> None:
    """Make the `number`-th call of `os.replace` in this process its last act, done or not done."""
    replace, calls = os.replace, 0

    def counted(source: str, target: str) -> None:
        nonlocal calls
        calls += 1
        if calls == number and before:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = counted  # type: ignore[assignment]


def main(recipe: Path, step: int = 1) -> int:
    """Fork until a process survives; returns its status."""
    kills = 0
    while True:
        child = os.fork()
        if child == 0:
            die_at(1 + kills * step, before=kills % 2 == 0)
            status = 1
            try:
                story.run_recipe(read_recipe(recipe))
                status = 0
            finally:
                sys.stderr.flush()
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status != -signal.SIGKILL:
            print(kills)
            return status
        kills += 1
        print(f"KILLED {kills}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *map(int, sys.argv[2:])))
