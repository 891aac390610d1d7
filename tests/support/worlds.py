"""Small worlds to train recommenders on: users who walk round a ring of items."""

from __future__ import annotations

import numpy as np

from catalex.data.columns import TEST, TRAIN, VALID
from catalex.data.histories import Histories, SplitHistories
from catalex.recommenders.base import RecommenderDomain
from catalex.tokenizers.base import CodeSpace
from catalex.types import Codes, Floats, Ints

SPACE = CodeSpace((4, 4, 4), (0, 1, 2))


def identifiers(items: int, seed: int = 0) -> Codes:
    """Different identifiers of `SPACE` ``(N, 3)``, in no order."""
    chosen = np.random.default_rng(seed).permutation(64)[:items]
    return np.stack([chosen // 16, chosen // 4 % 4, chosen % 4], axis=1).astype(np.int32)


def ring(users: int = 30, items: int = 20, *, step: int = 1) -> SplitHistories:
    """User u begins at item u and takes 4 to 10 steps round the ring; the last two items are held out."""
    sequences = [[(u + step * i) % items for i in range(4 + u % 7)] for u in range(users)]
    return leave_one_out(sequences)


def leave_one_out(sequences: list[list[int]]) -> SplitHistories:
    """The last interaction of each sequence is for testing, the one before it for validation."""
    parts: list[int] = []
    for sequence in sequences:
        parts += [TRAIN] * (len(sequence) - 2) + [VALID, TEST]
    return SplitHistories(Histories.from_lists(sequences), np.array(parts, np.int64))


def with_held_out(split: SplitHistories, replacement: Ints) -> SplitHistories:
    """The same split with other validation and test items."""
    held_out = split.parts != TRAIN
    items = split.all.items.copy()
    items[held_out] = replacement[: held_out.sum()]
    return SplitHistories(Histories(split.all.offsets, items), split.parts)


def domain(
    split: SplitHistories, *, items: int = 20, name: str = "ring", codes: Codes | None = None
) -> RecommenderDomain:
    """What a recommender learns from."""
    owned = identifiers(items) if codes is None else codes
    vectors, images, attributes = content(items)
    return RecommenderDomain(
        name,
        items,
        split.training,
        split.validation,
        split.split_id,
        identifiers=owned,
        vectors=vectors,
        image_vectors=images,
        attributes=attributes,
    )


def content(items: int, seed: int = 0) -> tuple[Floats, Floats, Histories]:
    """Vectors of items ``(N, 12)``, vectors of their images ``(N, 6)``, every fifth without one, and
    attributes: none for the first item, one or two of five for the others."""
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((items, 12)).astype(np.float32)
    images = random.standard_normal((items, 6)).astype(np.float32)
    images[::5] = 0.0
    owned = [sorted({item % 5, item * 3 % 5}) if item else [] for item in range(items)]
    return vectors, images, Histories.from_lists(owned)
