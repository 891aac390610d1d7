"""A command that serves over HTTP, as a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

READY = re.compile(r"catalex answers at (http://\S+)")


@contextmanager
def served_by(
    arguments: Sequence[str], *, folder: Path | None = None, seconds: float = 60
) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """``catalex`` with `arguments`: the process, its address, and the lines that it told so far.

    Args:
        folder: Where it runs.
        seconds: Until it has to answer.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "catalex", *arguments],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    lines: list[str] = []
    told = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if READY.search(line):
                told.set()
        told.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert told.wait(seconds), lines[-20:]
        found = READY.search("".join(lines))
        assert found is not None, lines[-20:]
        yield process, found[1].replace("localhost", "127.0.0.1"), lines
    finally:
        process.kill()
        process.wait()
        reader.join()
        assert process.stderr is not None
        process.stderr.close()
