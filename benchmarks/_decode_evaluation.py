"""What an evaluation costs beside its decoding: the protocol against the bare search of the same batches.

Users of a synthetic domain have histories of 1 to S items and one target each. The evaluation is the one of
`catalex evaluate`: the recommender's lists, ranks, and the summary with all metrics. Beside it the search is
asked for the same batches, whose tokens are ready. Both take turns. Rounds on a busy machine differ by more
than what is looked for, so an evaluation also tells how much of itself was spent outside of its searches.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _decode_work import CODES, catalogue

from catalex.data.histories import Cases, Histories
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
    inside: list[float] = []
    within: list[float] = []
    search = engine.search

    def timed(*values: Any, **more: Any) -> Any:
        began = time.perf_counter()
        found = search(*values, **more)
        inside.append(time.perf_counter() - began)
        return found

    def whole() -> None:
        began = time.perf_counter()
        inside.clear()
        engine.search = timed  # type: ignore[method-assign]
        result = evaluate(recommender, cases, system="t5", domain=SPLIT, split_id=SPLIT, seed=0)
        summary(result, popularity)
        within.append((time.perf_counter() - began) / sum(inside))
        engine.search = search  # type: ignore[method-assign]
        answers["evaluation"] = result.top

    def alone() -> None:
        found = [engine.search(batch).items for batch in tokens]  # on the CPU: the device has been waited for
        answers["decoding"] = torch.cat(found).numpy()

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
    return found | {"within": statistics.median(within[1:])}


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
    search = engine.search

    def listening(tokens: torch.Tensor, **more: Any) -> Any:
        heard.append(tokens)
        return search(tokens, **more)

    engine.search = listening  # type: ignore[method-assign]
    evaluate(recommender, cases, system="t5", domain=SPLIT, split_id=SPLIT, seed=0)
    engine.search = search  # type: ignore[method-assign]
    return heard
