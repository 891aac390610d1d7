"""The batcher: answers of single requests, whole batches, errors that stay with their request."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from catalex.decoding import Decoded, Trie, beam_search
from catalex.decoding.engine import Batcher, Engine
from catalex.errors import CatalexError
from catalex.models.t5 import T5, T5Options

VOCABULARY = 20
HISTORIES = [[1, 9, 19], [2, 19], [3, 8, 4, 9, 19], [19], [5, 12, 6, 13, 19], [7, 14, 19]]


@pytest.fixture(scope="module")
def engine() -> Engine:
    torch.manual_seed(0)
    model = T5(VOCABULARY, T5Options(layers=1, hidden=16, feed_forward=16, heads=2, head_width=8)).eval()
    rows = np.stack(np.meshgrid(np.arange(1, 7), np.arange(8, 14)), axis=-1).reshape(-1, 2)
    return Engine(model, Trie(rows), beam=6, k=4)


def alone(engine: Engine, history: list[int], allowed: torch.Tensor | None = None) -> list[int]:
    found = beam_search(engine.model, torch.tensor([history]), engine.trie, beam=6, k=4, allowed=allowed)
    items: list[int] = found.items[0].tolist()
    return items


class Slow(Engine):
    """Waits until it is told to answer, and remembers the sizes of its batches."""

    def __init__(self, engine: Engine) -> None:
        self.__dict__.update(engine.__dict__)
        self.go, self.begun, self.sizes = threading.Event(), threading.Event(), list[int]()

    def search(self, tokens: torch.Tensor, **restrictions: object) -> Decoded:
        self.sizes.append(len(tokens))
        self.begun.set()
        assert self.go.wait(5)
        return super().search(tokens, **restrictions)  # type: ignore[arg-type]


def test_every_caller_gets_the_answer_of_a_single_request(engine: Engine) -> None:
    with Batcher(engine, largest=4) as batcher, ThreadPoolExecutor(6) as callers:
        answers = list(callers.map(lambda history: batcher.submit(history).result(5)[0], HISTORIES * 3))
    assert answers == [alone(engine, history) for history in HISTORIES] * 3


def test_requests_gather_while_the_engine_is_busy(engine: Engine) -> None:
    slow = Slow(engine)
    with Batcher(slow, largest=4, patience=0) as batcher:
        first = batcher.submit(HISTORIES[0])
        assert slow.begun.wait(5)
        rest = [batcher.submit(history) for history in HISTORIES[1:]]
        slow.go.set()
        assert first.result(5)[0] == alone(engine, HISTORIES[0])
        assert [future.result(5)[0] for future in rest] == [alone(engine, h) for h in HISTORIES[1:]]
    assert slow.sizes == [1, 4, 1]


def test_patience_makes_one_batch_of_what_comes_soon(engine: Engine) -> None:
    slow = Slow(engine)
    slow.go.set()
    with Batcher(slow, largest=3, patience=5) as batcher:
        for future in [batcher.submit(history) for history in HISTORIES[:3]]:
            future.result(5)
    assert slow.sizes == [3]


def test_each_request_has_its_own_restrictions(engine: Engine) -> None:
    masks = np.zeros((2, 36), bool)
    masks[0, ::2], masks[1, :3] = True, True
    engine.set_filters(masks)
    with Batcher(engine, patience=0.05) as batcher:
        plain = batcher.submit(HISTORIES[0])
        even = batcher.submit(HISTORIES[0], filter=0)
        few = batcher.submit(HISTORIES[1], filter=1, excluded=[0])
        best = alone(engine, HISTORIES[2])
        without = batcher.submit(HISTORIES[2], excluded=best[:2])
        assert plain.result(5)[0] == alone(engine, HISTORIES[0])
        assert even.result(5)[0] == alone(engine, HISTORIES[0], torch.from_numpy(masks[0]))
        items, scores = few.result(5)
        assert sorted(items) == [1, 2]
        assert len(scores) == 2
        left = torch.ones(36, dtype=torch.bool).index_fill(0, torch.tensor(best[:2]), False)
        assert without.result(5)[0] == alone(engine, HISTORIES[2], left)


def test_an_error_reaches_those_who_wait_and_the_next_batch_runs(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(engine)
    slow.go.set()
    with Batcher(slow, patience=0) as batcher:
        with monkeypatch.context() as patch:
            patch.setattr(slow, "search", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("device lost")))
            with pytest.raises(RuntimeError, match="device lost"):
                batcher.submit(HISTORIES[0]).result(5)
        assert batcher.submit(HISTORIES[0]).result(5)[0] == alone(engine, HISTORIES[0])


def test_a_cancelled_request_disturbs_nobody(engine: Engine) -> None:
    slow = Slow(engine)
    with Batcher(slow, patience=0) as batcher:
        batcher.submit(HISTORIES[0])
        assert slow.begun.wait(5)
        cancelled, other = batcher.submit(HISTORIES[1]), batcher.submit(HISTORIES[2])
        assert cancelled.cancel()
        slow.go.set()
        assert other.result(5)[0] == alone(engine, HISTORIES[2])


def test_bad_requests_are_refused_where_they_are_made(engine: Engine) -> None:
    batcher = Batcher(engine)
    with pytest.raises(CatalexError, match="the history is empty"):
        batcher.submit([])
    with pytest.raises(CatalexError, match=r"not in the vocabulary \(found \[3, 20\]; allowed: 1 to 19\)"):
        batcher.submit([3, 20])
    batcher.close()
    with pytest.raises(CatalexError, match=r"the batcher is closed\. Make a new one"):
        batcher.submit([3])
    with pytest.raises(CatalexError, match="largest: the batch size must be positive"):
        Batcher(engine, largest=0)
