"""How many of an item's nearest content neighbours survive quantization.

For each item the k = 10 items with the highest cosine of content vectors are its true neighbours. Two
answers to
"which items do the codes call nearest":

- by prefix, what a recommender can see: items are ranked by the number of leading codes they share with the
item.
  Ties are in random order, and the expectation over those orders is taken. This is the measure to judge a
  tokenizer
  by; an own residual k-means of 3 x 256 keeps about .43 on a catalogue of 2,400 office products.
- by reconstruction: items are ranked by the cosine of `Tokenizer.decode` of both items' codes. It also
credits
  different codes whose code vectors are close, about .56 in the same case.
"""

from __future__ import annotations

import numpy as np

from catalex.quantize.usage import prefix_groups
from catalex.types import Codes, Doubles, Floats, Ints

NEIGHBOURS = 10
QUERIES = 2000
"""Items asked at most; the standard error of the mean share is then below .01."""


def sample_queries(items: int, seed: int = 0) -> Ints:
    """The items that are asked: all, or `QUERIES` random ones, ascending."""
    if items <= QUERIES:
        return np.arange(items)
    return np.sort(np.random.default_rng(seed).choice(items, QUERIES, replace=False))


def nearest_by_cosine(vectors: Floats, queries: Ints, count: int = NEIGHBOURS, block: int = 256) -> Ints:
    """``(Q, count)`` the other items nearest to each query by cosine, ties to the lower index; fewer in a
    tiny
    catalogue."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    count = min(count, len(vectors) - 1)
    found = []
    for start in range(0, len(queries), block):
        rows = queries[start : start + block]
        scores = unit[rows] @ unit.T
        scores[np.arange(len(rows)), rows] = -np.inf
        found.append(np.argsort(-scores, axis=1, kind="stable")[:, :count])
    return np.concatenate(found) if found else np.zeros((0, max(count, 0)), np.int64)


def kept_by_prefix(truth: Ints, codes: Codes, queries: Ints) -> float:
    """Expected share of the true neighbours ``(Q, k)`` among the k items that share most leading codes ``(N,
    L)``."""
    if not truth.size:
        return 1.0
    levels, wanted = codes.shape[1], truth.shape[1]
    shared = (codes[truth] == codes[queries][:, None]).cumprod(2).sum(2)
    left: Doubles = np.full(len(queries), float(wanted))
    kept: Doubles = np.zeros(len(queries))
    deeper: Doubles = np.zeros(len(queries))
    for depth in range(levels, -1, -1):
        groups = prefix_groups(codes, depth)
        within: Doubles = np.bincount(groups)[groups[queries]] - np.float64(
            1
        )  # items that share at least `depth` codes
        exactly: Doubles = within - deeper
        deeper = within
        taken = np.minimum(left, exactly)
        kept += taken * (shared == depth).sum(1) / np.maximum(exactly, 1)
        left = left - taken
    return float(kept.mean() / wanted)


def kept_by_reconstruction(truth: Ints, reconstruction: Floats, queries: Ints) -> float:
    """Share of the true neighbours ``(Q, k)`` among the k nearest by the cosine of reconstructions ``(N,
    D)``."""
    if not truth.size:
        return 1.0
    found = nearest_by_cosine(reconstruction, queries, truth.shape[1])
    hits = [len(np.intersect1d(a, b, assume_unique=True)) for a, b in zip(truth, found, strict=True)]
    return float(np.mean(hits) / truth.shape[1])
