"""What an evaluation costs beside its decoding: the protocol against the bare search of the same batches.

Users of a synthetic domain have histories of 1 to S items and one target each. The evaluation is the one of
`catalex evaluate`: the recommender's lists, ranks, and the summary with all metrics. Beside it the search is
asked for the same batches, whose tokens are ready. Both take turns. Rounds on a busy machine differ by more
than what is looked for, so on a CPU, where a search waits for its answers, an evaluation also tells how much
of itself was spent outside of its searches.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from _decode_work import CODES, catalogue

from catalex.data.histories import Cases, Histories
from catalex.decoding.engine import Engine
from catalex.evaluation.protocol import CHUNK, evaluate
from catalex.evaluation.results import summary
from catalex.recommenders.base import RecommenderDomain
from catalex.recommenders.generative import Generative, GenerativeOptions
from catalex.tokenizers import CodeSpace

K = 10
SPLIT = "synthetic"


def measured(options: argparse.Namespace) -> dict[str, float]:
    """Seconds of the evaluation and of its decoding alone; `ratio`, the median of the rounds' ratios;
    `within`, an evaluation's seconds as a multiple of those of its own searches."""
    recommender, cases = made(options)
    popularity = np.bincount(cases.histories.items, minlength=options.items).astype(np.int64)
    tokens = batches(recommender, cases)
    engine = recommender._engine(K, options.beam)
    answers: dict[str, Any] = {}
    within: list[float] = []

    def whole() -> None:
        inside: list[float] = []
        began = time.perf_counter()
        with replaced(engine, partial(timed, engine.search_each, inside)):
            result = evaluate(recommender, cases, system="t5", domain=SPLIT, split_id=SPLIT, seed=0)
            summary(result, popularity)
        within.append((time.perf_counter() - began) / sum(inside))
        answers["evaluation"] = result.top

    def alone() -> None:
        found = engine.search_each((batch, None) for batch in tokens)
        answers["decoding"] = torch.cat([best.items for best in found]).numpy()  # which waits for the device

    runs: dict[str, Callable[[], None]] = {"evaluation": whole, "decoding": alone}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(options.repeats + 1):
        for name in list(runs) if number % 2 else list(runs)[::-1]:
            began = time.perf_counter()
            runs[name]()
            taken = time.perf_counter() - began
            print(f"round {number}, {name}: {taken:.3f} s", file=sys.stderr, flush=True)
            times[name] += [taken] if number else []
        if number == 0 and not np.array_equal(answers["evaluation"][order(cases)], answers["decoding"]):
            raise SystemExit("evaluation and search give other items; timing them would mean nothing")
    ratios = [one / other for one, other in zip(times["evaluation"], times["decoding"], strict=True)]
    found = {name: statistics.median(values) for name, values in times.items()}
    found |= {"ratio": statistics.median(ratios), "smallest": min(ratios), "largest": max(ratios)}
    return found | ({"within": statistics.median(within[1:])} if options.device == "cpu" else {})


def timed(search_each: Any, inside: list[float], batches: Iterable[Any]) -> Iterator[Any]:
    """The answers of `search_each`; `inside` gets the seconds spent there and not in making the batches."""
    making = [0.0]

    def made_in_time() -> Iterator[Any]:
        began = time.perf_counter()
        for batch in batches:
            making[0] += time.perf_counter() - began
            yield batch
            began = time.perf_counter()
        making[0] += time.perf_counter() - began

    began = time.perf_counter()
    for answer in search_each(made_in_time()):
        inside.append(time.perf_counter() - began - making[0])
        yield answer
        began, making[0] = time.perf_counter(), 0.0


@contextmanager
def replaced(engine: Engine, search_each: Any) -> Iterator[None]:
    """`search_each` in place of the engine's own."""
    engine.search_each = search_each  # type: ignore[method-assign]
    try:
        yield
    finally:
        del engine.search_each


def made(options: argparse.Namespace) -> tuple[Generative, Cases]:
    """A recommender with random weights over a random catalogue, and one case for each user."""
    rows = catalogue(options.items, options.levels)
    codes = (rows - 1 - CODES * np.arange(options.levels)).astype(np.int32)
    random = np.random.default_rng(0)
    lengths = random.integers(1, options.history + 1, options.users)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    histories = Histories(offsets, random.integers(0, options.items, offsets[-1]))
    targets = random.integers(0, options.items, options.users)
    cases = Cases(np.arange(options.users), histories, targets)
    values = {"model": {"preset": options.preset}, "max_history": options.history, "beam": options.beam}
    recommender = Generative(
        GenerativeOptions.parse(values, "benchmark"), CodeSpace.of(options.levels, CODES)
    )
    domain = RecommenderDomain(SPLIT, options.items, histories, cases, SPLIT, identifiers=codes)
    recommender.to(options.device).bind(domain)
    return recommender, cases


def order(cases: Cases) -> Any:
    """Rows of the cases as an evaluation decodes them: by length within a chunk."""
    found = []
    for start in range(0, len(cases), CHUNK):
        lengths = cases.histories.lengths[start : start + CHUNK]
        found.append(start + np.argsort(lengths, kind="stable"))
    return np.concatenate(found)


def batches(recommender: Generative, cases: Cases) -> list[torch.Tensor]:
    """Tokens of the batches that an evaluation decodes."""
    heard: list[torch.Tensor] = []
    engine = recommender._engine(K, recommender.options.beam)
    search_each = engine.search_each

    def listening(batches: Iterable[Any]) -> Iterator[Any]:
        kept = list(batches)
        heard.extend(tokens for tokens, _ in kept)
        return search_each(kept)

    with replaced(engine, listening):
        evaluate(recommender, cases, system="t5", domain=SPLIT, split_id=SPLIT, seed=0)
    return heard
