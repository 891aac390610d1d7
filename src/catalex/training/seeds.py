"""Seeds that depend on what is done, never on what was done before: why resuming equals not stopping."""

from __future__ import annotations

import hashlib

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
