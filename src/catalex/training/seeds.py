"""Seeds that depend on what is done, never on what was done before: why resuming equals not stopping."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive(seed: int, *parts: object) -> int:
    """A 63-bit seed for one named piece of randomness, e.g. ``derive(seed, "epoch", 3)``."""
    text = "/".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *parts: object) -> np.random.Generator:
    """A NumPy generator for one named piece of randomness."""
    return np.random.default_rng(derive(seed, *parts))


def seed_torch(seed: int, *parts: object) -> None:
    """Point torch's generators (CPU and CUDA) at one named piece of randomness."""
    torch.manual_seed(derive(seed, *parts))


@contextmanager
def deterministic(device: str) -> Iterator[None]:
    """Ask torch for operations that give the same bits on every run, where that costs little: on the CPU.

    Without it the gradient of an indexed read is added up by several threads in the order in which they
    happen to arrive.
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(before or not device.startswith("cuda"))
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
