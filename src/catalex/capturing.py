"""Capturing CUDA graphs in a process that does other things too.

A capture ends in an error when its process calls CUDA in ways that a graph cannot hold. Two kinds of such
calls come from elsewhere than the captured code: those of other threads, and those of the garbage collector,
which may at any time free the graphs, events and page-locked memory of objects that are long out of use.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def capturing(graph: torch.cuda.CUDAGraph, pool: Any) -> Iterator[None]:
    """Record what runs in this context into `graph`, which shares the memory of `pool` (None: its own)."""
    collects = gc.isenabled()
    gc.disable()
    try:
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            yield
    finally:
        if collects:
            gc.enable()
