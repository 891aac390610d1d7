"""Examples of a generative recommender, written as a padded batch and, by plain loops, as packed ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from catalex.models.t5 import IGNORE, PAD
from catalex.training.packing import groups, rows


@dataclass(frozen=True)
class Example:
    """Tokens of a history and labels of its target."""

    tokens: list[int]
    labels: list[int]


def random_examples(lengths: list[int], vocabulary: int, seed: int, positions: int = 4) -> list[Example]:
    """Examples of random tokens."""
    random = np.random.default_rng(seed)
    return [
        Example(
            random.integers(1, vocabulary, length).tolist(),
            random.integers(1, vocabulary, positions).tolist(),
        )
        for length in lengths
    ]


def padded(examples: list[Example]) -> dict[str, Tensor]:
    """Right-padded ``tokens (B, T)`` and ``labels (B, P)``."""
    longest = max(len(e.tokens) for e in examples)
    text = [e.tokens + [PAD] * (longest - len(e.tokens)) for e in examples]
    return {"tokens": torch.tensor(text), "labels": torch.tensor([e.labels for e in examples])}


def grouped(examples: list[Example]) -> dict[str, Tensor]:
    """The layout of a CPU."""
    packed, widths = groups(np.array([len(e.tokens) for e in examples]))
    ordered = [examples[i] for i in packed.order]
    return {
        "tokens": torch.tensor([token for e in ordered for token in e.tokens]),
        "labels": torch.tensor([e.labels for e in ordered]),
        "widths": torch.from_numpy(widths),
    }


def in_rows(examples: list[Example], capacity: int, absent: int = 0) -> dict[str, Tensor]:
    """The layout of a GPU; `absent` rows of labels have no example."""
    packed = rows(np.array([len(e.tokens) for e in examples]), capacity, multiple=2)
    tokens = torch.full((packed.size,), PAD)
    segments = torch.full((packed.size,), -1, dtype=torch.int32)
    for row, (number, start) in enumerate(zip(packed.order, packed.starts, strict=True)):
        own = examples[number].tokens
        tokens[start : start + len(own)] = torch.tensor(own)
        segments[start : start + len(own)] = row
    positions = len(examples[0].labels)
    labels = [examples[i].labels for i in packed.order] + [[IGNORE] * positions] * absent
    spans = np.pad(np.stack([packed.starts, packed.lengths]), ((0, 0), (0, absent))).astype(np.int32)
    return {
        "tokens": tokens,
        "labels": torch.tensor(labels),
        "segments": segments.view(-1, capacity),
        "starts": torch.from_numpy(spans[0]),
        "lengths": torch.from_numpy(spans[1]),
    }
