"""`Service`: the model that answers, the one beside it, and the threads that do the work.

Nothing of HTTP is in here. A request takes the present model with `using` and keeps it to its end, so that a
swap never pulls it away; what a swap needs on top is in `swap`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from catalex.bundle import Bundle
from catalex.errors import user_error
from catalex.models.t5 import PAD
from catalex.serving.catalogue import LiveCatalogue
from catalex.serving.items import Item, NewItem, Selection
from catalex.serving.metrics import Metrics
from catalex.serving.nearest import Neighbourhood
from catalex.serving.newcomers import Newcomers
from catalex.serving.searching import SelectingBatcher
from catalex.serving.settings import ServeOptions
from catalex.serving.store import Store

T = TypeVar("T")
log = logging.getLogger("catalex.serving")


@dataclass
class Served:
    """A bundle that is loaded, with all that answering from it takes."""

    name: str
    catalogue: LiveCatalogue
    batcher: SelectingBatcher
    neighbourhood: Neighbourhood
    newcomers: Newcomers | None = None
    users: int = 0
    """Requests that are answered from it now."""
    idle: threading.Condition = field(default_factory=threading.Condition)

    def close(self, timeout: float) -> None:
        """Wait for the last request, then let go."""
        with self.idle:
            self.idle.wait_for(lambda: self.users == 0, timeout)
        self.batcher.close()
        self.catalogue.close()


@dataclass(frozen=True)
class Answer:
    """One recommendation.

    Attributes:
        score: Its log-probability; of a newcomer that of the item before it.
        steps: Log-probabilities of its codes, where they were asked for.
        newcomer: Whether it stands in a place kept for newcomers, chosen by its content.
    """

    item: Item
    score: float
    steps: tuple[float, ...] | None = None
    newcomer: bool = False


class Service:
    """Answers from one model at a time.

    Args:
        bundle: Folder of the first bundle.
        options: All settings.
    """

    def __init__(self, bundle: Path, options: ServeOptions) -> None:
        self.options, self.metrics = options, Metrics()
        self.reading = ThreadPoolExecutor(options.threads, "catalex-read")
        self.writing = ThreadPoolExecutor(1, "catalex-write")
        self.swapping = ThreadPoolExecutor(1, "catalex-swap")
        self.recorded: deque[list[str]] = deque(maxlen=options.sample or 1)
        """Latest histories of known items, for comparing models; in memory only."""
        self.changing = threading.Lock()
        """Held by whoever writes, so that a swap can hold the writes for a moment."""
        self.ready = False
        self._taking = threading.Lock()
        self._over = threading.Event()
        self.present = self.load(bundle)
        self._heard = time.monotonic()  # of the store, last
        self._in_touch = True
        self._poller = threading.Thread(target=self._poll, name="catalex-poll", daemon=True)
        self._poller.start()
        self.ready = True

    # --- models ---------------------------------------------------------------------------------------------

    def load(self, folder: Path) -> Served:
        """A bundle over its store, ready to answer.

        Raises:
            CatalexError: When the bundle is damaged, its recommender cannot be served, or the store cannot be
                opened.
        """
        o = self.options
        bundle = Bundle.load(folder)
        device = o.device if o.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        beam = max(o.max_k, _beam_of(bundle))
        store = Store.open(store_url(o.store, folder))
        try:
            catalogue = LiveCatalogue.open(
                bundle, store, device=device, beam=beam, k=o.max_k, precision=o.precision
            )
        except BaseException:
            store.close()
            raise
        if (folder / "tokenizer").is_dir():
            catalogue.tokenize("warm up")  # encoders load their weights when they are first asked
        catalogue.recommend([catalogue.vocabulary.eos], 1)
        batcher = SelectingBatcher(catalogue, largest=o.batch_size, patience=o.batch_wait)
        newcomers = Newcomers(catalogue, share=o.newcomers) if o.newcomers else None
        catalogue.search("", 1)
        neighbourhood = Neighbourhood(catalogue)
        neighbourhood.prepare()
        return Served(folder.resolve().name, catalogue, batcher, neighbourhood, newcomers)

    @contextmanager
    def using(self) -> Iterator[Served]:
        """The present model, which stays loaded until the request is done with it."""
        with self._taking:
            served = self.present
            with served.idle:
                served.users += 1
        try:
            yield served
        finally:
            with served.idle:
                served.users -= 1
                served.idle.notify_all()

    def put(self, served: Served) -> Served:
        """Let `served` answer from now on; gives back the one that did before."""
        with self._taking:
            before, self.present = self.present, served
        return before

    def close(self) -> None:
        """End all threads after their last work."""
        self.ready = False
        self._over.set()
        self._poller.join()
        for threads in (self.reading, self.writing, self.swapping):
            threads.shutdown(cancel_futures=True)
        self.present.close(self.options.drain_timeout)

    # --- requests -------------------------------------------------------------------------------------------

    async def read(self, work: Callable[[], T]) -> T:
        """The result of `work`, done by a thread that may read the catalogue."""
        return await asyncio.wrap_future(self.reading.submit(work))

    async def write(self, work: Callable[[LiveCatalogue], T]) -> T:
        """The result of `work` on the present catalogue, done by the thread that writes.

        A caller that gives up waiting does not undo it; what came too early to have begun is dropped.
        """

        def change() -> T:
            with self.changing, self.using() as served:
                return work(served.catalogue)

        return await asyncio.wrap_future(self.writing.submit(change))

    async def begin(self, work: Callable[[], T]) -> T:
        """The result of `work`, done by the thread that swaps models."""
        return await asyncio.wrap_future(self.swapping.submit(work))

    async def recommend(
        self,
        served: Served,
        history: Sequence[str | NewItem],
        k: int,
        *,
        excluded: Sequence[str] = (),
        selection: Selection | None = None,
        explain: bool = False,
    ) -> list[Answer]:
        """The best next items.

        Raises:
            CatalexError: When the history names an item that never was in the catalogue.
        """
        catalogue = served.catalogue
        if all(isinstance(one, str) for one in history):
            tokens = catalogue.tokens_of([str(one) for one in history])
            if self.options.sample:
                self.recorded.append([str(one) for one in history])
        else:
            tokens = await self.read(lambda: catalogue.history_tokens(history))
        numbers = [item.number for key in excluded if (item := catalogue.get(key)) is not None]
        answer = served.batcher.ask(tokens, numbers, selection or Selection())
        found, scores = await asyncio.wrap_future(answer)
        pairs = [
            (item, score)
            for number, score in zip(found, scores, strict=True)
            if (item := catalogue.numbered(number)) is not None and math.isfinite(score)
        ]
        by_model = {item.number for item, _ in pairs[:k]}
        if served.newcomers is None:
            pairs = pairs[:k]
        else:
            mix, best = served.newcomers.mix, pairs
            passed = [*excluded, *(one for one in history if isinstance(one, str))]  # these may not come out
            pairs = await self.read(lambda: mix(best, passed, k, selection))
        steps: Sequence[tuple[float, ...] | None] = [None] * len(pairs)
        if explain and pairs:
            identifiers = [item.identifier for item, _ in pairs]
            steps = await self.read(lambda: step_log_probabilities(catalogue, tokens, identifiers))
        return [
            Answer(item, score, step, newcomer=item.number not in by_model)
            for (item, score), step in zip(pairs, steps, strict=True)
        ]

    def silence(self) -> float:
        """Seconds since the store answered last, 0 while it does in time. The catalogue may be as old."""
        passed = time.monotonic() - self._heard
        return 0.0 if self._in_touch and passed < 1 + 2 * self.options.poll else passed

    def observe(self) -> None:
        """Bring the gauges up to date."""
        served = self.present
        self.metrics.items.set(len(served.catalogue))
        self.metrics.revision.set(served.catalogue.revision)
        self.metrics.batches.set(served.batcher.batches)
        self.metrics.model.clear()
        self.metrics.model.labels(served.name).set(1)
        silence = self.silence()
        self.metrics.silence.set(silence)
        self.metrics.ready.set(self.ready and silence < self.options.stale)

    def _poll(self) -> None:
        while not self._over.wait(self.options.poll):
            try:
                with self.using() as served:
                    served.catalogue.poll()
                self._heard = time.monotonic()
                if not self._in_touch:
                    log.warning("the store answers again")
                self._in_touch = True
            except Exception as error:  # the store may be away for a while; the next round asks again
                if self._in_touch:
                    log.warning("changes of other replicas cannot be read now: %s", type(error).__name__)
                self._in_touch = False


def step_log_probabilities(
    catalogue: LiveCatalogue, tokens: Sequence[int], identifiers: Sequence[Sequence[int]]
) -> list[tuple[float, ...]]:
    """For each identifier the log-probability of each code after the history and the codes before.

    Over all tokens, as scores are, so that they add up to the score.
    """
    model = catalogue.engine.model
    device = model.embedding.weight.device
    codes = np.array([list(identifier) for identifier in identifiers], np.int32)
    labels = torch.from_numpy(catalogue.vocabulary.tokens(codes)).long().to(device)
    history = torch.tensor([list(tokens)], device=device).expand(len(labels), -1)
    assert PAD not in tokens
    with torch.inference_mode():
        logged = model(history, labels).float().log_softmax(-1)
        found = logged.gather(-1, labels[..., None])[..., 0]
    return [tuple(row) for row in found.tolist()]


def store_url(template: str | None, folder: Path) -> str:
    """The store of a bundle: ``{bundle}`` in the template is the name of its folder.

    By default an SQLite file beside the folder.
    """
    folder = folder.resolve()
    if template is None:
        return f"sqlite:///{folder.with_name(folder.name + '.sqlite')}"
    return template.replace("{bundle}", folder.name)


def check_folder(folder: Path) -> None:
    """Refuse what cannot be swapped in from.

    Raises:
        CatalexError: When it is no folder.
    """
    if not folder.is_dir():
        raise user_error(
            "the folder of models does not exist", place=folder, remedy="name an existing folder"
        )


def _beam_of(bundle: Bundle) -> int:
    beam = getattr(getattr(bundle.recommender, "options", None), "beam", 0)
    return int(beam)
