"""What may happen in a process while a CUDA graph is captured."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch

from catalex.capturing import capturing

GRAPH: Any = None
"""Captures that do not happen need none."""


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What torch is asked for, in place of captures."""
    calls: list[dict[str, Any]] = []

    @contextmanager
    def graph(_: Any, **options: Any) -> Iterator[None]:
        calls.append(options)
        yield

    monkeypatch.setattr(torch.cuda, "graph", graph)
    return calls


@pytest.mark.parametrize("collects", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_garbage_waits_for_the_end_of_a_capture(
    heard: list[dict[str, Any]], collects: bool, fails: bool
) -> None:
    pool = object()
    (gc.enable if collects else gc.disable)()
    try:
        with nullcontext() if not fails else pytest.raises(ZeroDivisionError), capturing(GRAPH, pool):
            assert not gc.isenabled()
            assert 1 / (0 if fails else 1)
        assert gc.isenabled() == collects
    finally:
        gc.enable()
    assert heard == [{"pool": pool, "capture_error_mode": "thread_local"}]


@pytest.mark.gpu
def test_other_threads_may_use_the_device_during_a_capture() -> None:
    x = torch.ones(4, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with capturing(graph, None):
        y = x + 1
        other = threading.Thread(target=lambda: torch.ones(2**28, device="cuda").sum().item())
        other.start()
        other.join()
        y = y * 2
    graph.replay()
    assert y.tolist() == [4.0] * 4
