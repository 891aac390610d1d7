"""Continuous batching: requests of many threads, gathered into whole batches for one engine.

A search has only L steps, so nothing joins a batch on its way. While one batch is on the device the next
collects by itself; a lone request waits `patience` seconds at most. The engine's answers do not depend on the
batch, so neither do a caller's.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import torch

from catalex.decoding.engine.engine import Engine
from catalex.errors import user_error
from catalex.models.t5 import PAD

PATIENCE = 0.001
"""Seconds; about one batch's time on a GPU, so that waiting at most doubles a lone request's latency."""


@dataclass
class Request:
    """A history of tokens and what may not come out, with the answer to come."""

    history: Sequence[int]
    excluded: Sequence[int]
    filter: int
    answer: Future[tuple[list[int], list[float]]] = field(default_factory=Future)


class Batcher:
    """A thread that serves an engine; use as a context manager or `close` it.

    Args:
        engine: Used by this thread; others may use it too.
        largest: Requests of a batch, at most.
        patience: Seconds that an incomplete batch waits for more.
    """

    def __init__(self, engine: Engine, *, largest: int = 256, patience: float = PATIENCE) -> None:
        if largest < 1:
            raise user_error("the batch size must be positive", place="largest", value=largest)
        self.engine, self.largest, self.patience = engine, largest, patience
        self.batches = 0
        """Batches run so far."""
        self._waiting: deque[Request] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="catalex-batcher", daemon=True)
        self._thread.start()

    def submit(
        self, history: Sequence[int], *, excluded: Sequence[int] = (), filter: int = -1
    ) -> Future[tuple[list[int], list[float]]]:
        """Items and scores for a history of tokens, best first; shorter than k where items run out.

        Raises:
            CatalexError: When the history is empty, a token is unknown, or the batcher is closed. A request
                that is refused here disturbs nobody else's.
        """
        if not len(history):
            raise user_error("the history is empty", remedy="give at least the end token")
        if not PAD < min(history) <= max(history) < self.engine.model.vocabulary:
            raise user_error(
                "a token is not in the vocabulary",
                place="history",
                value=[min(history), max(history)],
                allowed=f"1 to {self.engine.model.vocabulary - 1}",
            )
        request = Request(history, excluded, filter)
        with self._changed:
            if self._closed:
                raise user_error("the batcher is closed", remedy="make a new one")
            self._waiting.append(request)
            self._changed.notify()
        return request.answer

    def close(self) -> None:
        """Answer what was submitted, then end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def __enter__(self) -> Batcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self) -> None:
        while batch := self._gather():
            try:
                self._answer(batch)
            except BaseException as error:
                for request in batch:
                    if not request.answer.done():
                        request.answer.set_exception(error)

    def _gather(self) -> list[Request]:
        """The next batch; empty when there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            until = time.monotonic() + self.patience
            while len(self._waiting) < self.largest and not self._closed:
                left = until - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            count = min(self.largest, len(self._waiting))
            return [self._waiting.popleft() for _ in range(count)]

    def _answer(self, batch: list[Request]) -> None:
        batch = [request for request in batch if request.answer.set_running_or_notify_cancel()]
        if not batch:
            return
        tokens = padded([request.history for request in batch], PAD)
        excluded = padded([request.excluded for request in batch], -1)
        chosen = np.array([request.filter for request in batch])
        found = self.engine.search(
            tokens,
            excluded=excluded if excluded.shape[1] else None,
            filters=torch.from_numpy(chosen) if (chosen >= 0).any() else None,
        )
        self.batches += 1
        for request, items, scores in zip(batch, found.items.tolist(), found.scores.tolist(), strict=True):
            count = sum(item >= 0 for item in items)
            request.answer.set_result((items[:count], scores[:count]))


def padded(rows: list[Sequence[int]], rest: int) -> torch.Tensor:
    """``(B, longest)`` int64 rows, filled with `rest` on the right."""
    padded = np.full((len(rows), max(map(len, rows))), rest, np.int64)
    for line, row in zip(padded, rows, strict=True):
        line[: len(row)] = row
    return torch.from_numpy(padded)
