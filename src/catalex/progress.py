"""Progress of long work: a bar with rate and remaining time on a terminal, plain lines otherwise.

Of several processes the main one alone speaks.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from catalex.processes import is_main

PLAIN_INTERVAL = 10.0
"""Seconds between two plain lines when the output is not a terminal."""


class Track:
    """Report the progress of one piece of work to standard error.

    >>> with Track("embed beauty", total=12101, unit="items") as track:      # doctest: +SKIP
    ...     for batch in batches:
    ...         track.advance(len(batch), note="loss 0.31")
    """

    def __init__(self, name: str, total: int | None, unit: str = "items", start: int = 0) -> None:
        self.name, self.total, self.unit, self.count = name, total, unit, start
        self._start = start
        self._note = ""
        self._began = self._last = time.monotonic()
        self._bar: Progress | None = None
        self._silent = not is_main()
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._began = self._last = time.monotonic()
        if sys.stderr.isatty() and not self._silent:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(
                self.name, total=self.total, completed=self.count, rate="", note=""
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None:
            self._print(final=True)

    @property
    def rate(self) -> float:
        """Units a second since the start of this process."""
        return (self.count - self._start) / max(time.monotonic() - self._began, 1e-9)

    def advance(self, amount: int = 1, note: str | None = None) -> None:
        """Count `amount` more units done; `note` (a loss, a metric) is shown beside the count."""
        self.count += amount
        self._note = self._note if note is None else note
        if self._bar is not None and self._task is not None:
            self._bar.update(
                self._task, completed=self.count, rate=f"{self.rate:,.0f} {self.unit}/s", note=self._note
            )
        elif time.monotonic() - self._last >= PLAIN_INTERVAL:
            self._last = time.monotonic()
            self._print()

    def _print(self, final: bool = False) -> None:
        if self._silent:
            return
        parts = [
            f"{self.name}: {self.count:,}" + (f"/{self.total:,}" if self.total else "") + f" {self.unit}"
        ]
        parts.append(f"{self.rate:,.0f} {self.unit}/s")
        if final:
            parts.append(f"done in {time.monotonic() - self._began:.1f} s")
        elif self.total and self.rate > 0:
            parts.append(f"ETA {(self.total - self.count) / self.rate:,.0f} s")
        if self._note:
            parts.append(self._note)
        print(", ".join(parts), file=sys.stderr, flush=True)


def say(message: str) -> None:
    """One plain line to standard error: what happens now, or what was skipped and why."""
    if is_main():
        print(message, file=sys.stderr, flush=True)
