"""Conflict handling on UTGRec's kind of codes: parallel levels, one leaf codebook of more than 256 codes.

All residuals of an item are known before any is quantized, so distances at a level do not depend on the codes
before it; levels 2 and 3 look into the same codebook.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from catalex.tokenizers.base import CodeSpace
from catalex.tokenizers.conflicts import resolve
from catalex.types import Codes, Floats

WIDTH = 4


class TreeDouble:
    """Residuals ``(N, 3 * WIDTH)`` against a root and a leaf codebook, in plain numpy."""

    def __init__(self, root: int = 3, leaf: int = 512, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self.root = generator.normal(size=(root, WIDTH))
        self.leaf = generator.normal(size=(leaf, WIDTH))
        self.space = CodeSpace((root, leaf, leaf), (0, 1, 1))
        self.order = (0, 1, 2)

    def distances(self, vectors: Floats, prefix: Codes) -> Floats:
        level = prefix.shape[1]
        book = self.leaf if level else self.root
        residual = vectors[:, level * WIDTH : (level + 1) * WIDTH]
        found: Floats = ((residual[:, None] - book) ** 2).sum(2).astype(np.float32)
        return found

    def encode(self, vectors: Floats) -> Codes:
        empty: Codes = np.zeros((len(vectors), 3), np.int32)
        found = [self.distances(vectors, empty[:, :level]).argmin(1) for level in range(3)]
        return np.stack(found, axis=1).astype(np.int32)


def items_at(tokenizer: Any, codes: list[int], count: int, spread: float, seed: int = 1) -> Floats:
    """Items whose residuals lie around three code vectors."""
    centre = np.concatenate([tokenizer.root[codes[0]], *(tokenizer.leaf[code] for code in codes[1:])])
    noise = np.random.default_rng(seed).normal(size=(count, 3 * WIDTH)) * spread
    found: Floats = (centre + noise).astype(np.float32)
    return found


def crowded(tokenizer: Any, seed: int) -> Floats:
    """Clumps that share identifiers, and items that stand alone."""
    generator = np.random.default_rng(seed)
    clumps = [
        items_at(tokenizer, [int(generator.integers(3)), *generator.integers(0, 512, 2).tolist()], n, 0.05, n)
        for n in (2, 3, 40, 90)
    ]
    alone = generator.normal(size=(60, 3 * WIDTH)).astype(np.float32)
    return np.concatenate([*clumps, alone])[generator.permutation(195)]


def alone(codes: Codes) -> Any:
    """``(N,)`` whether no other item has the same codes."""
    _, group, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    return counts[group.ravel()] == 1


@pytest.mark.parametrize("seed", range(5))
def test_unique_with_prefixes_kept_and_the_others_left_alone(seed: int) -> None:
    tokenizer: Any = TreeDouble(seed=seed)
    vectors = crowded(tokenizer, seed)
    codes = tokenizer.encode(vectors)
    assert 20 < alone(codes).sum() < 140  # the world has both conflicts and none
    found = resolve(tokenizer, vectors, codes)
    assert alone(found).all()
    np.testing.assert_array_equal(found[:, :2], codes[:, :2])  # no prefix has more than 512 items
    np.testing.assert_array_equal(found[alone(codes)], codes[alone(codes)])
    assert (found >= 0).all()
    assert (found < tokenizer.space.sizes).all()
    assert (found[:, 2] != codes[:, 2]).any()
    # The closest of each group keeps the code.
    near = tokenizer.distances(vectors, codes[:, :2])[np.arange(len(codes)), codes[:, 2]]
    for group in np.unique(codes, axis=0):
        rows = np.flatnonzero((codes == group).all(1))
        np.testing.assert_array_equal(found[rows[near[rows].argmin()]], group)


@pytest.mark.parametrize("seed", range(5))
def test_running_it_twice_and_in_another_order_changes_nothing(seed: int) -> None:
    tokenizer: Any = TreeDouble(seed=seed)
    vectors = crowded(tokenizer, seed)
    codes = tokenizer.encode(vectors)
    found = resolve(tokenizer, vectors, codes)
    np.testing.assert_array_equal(resolve(tokenizer, vectors, found), found)
    order = np.random.default_rng(seed).permutation(len(codes))
    np.testing.assert_array_equal(resolve(tokenizer, vectors[order], codes[order]), found[order])


def test_ties_go_by_index() -> None:
    tokenizer: Any = TreeDouble()
    vectors = items_at(tokenizer, [1, 300, 17], 1, 0.0).repeat(4, axis=0)
    found = resolve(tokenizer, vectors, tokenizer.encode(vectors))
    nearest = np.argsort(tokenizer.distances(vectors[:1], found[:1, :2])[0], kind="stable")
    assert found.tolist() == [[1, 300, int(code)] for code in nearest[:4]]


def test_a_second_nearest_code_of_the_upper_half_is_taken() -> None:
    tokenizer: Any = TreeDouble()
    tokenizer.leaf[400] = (
        tokenizer.leaf[10] + 1e-3
    )  # by far the nearest other code, and not among the first 256
    vectors = items_at(tokenizer, [0, 5, 10], 2, 0.0)
    assert resolve(tokenizer, vectors, tokenizer.encode(vectors)).tolist() == [[0, 5, 10], [0, 5, 400]]


def test_ranks_go_through_the_whole_leaf_codebook() -> None:
    # 512 equal items under one prefix fill it in the order of distance: every rank is used, every code given.
    tokenizer: Any = TreeDouble()
    vectors = items_at(tokenizer, [2, 7, 7], 1, 0.0).repeat(512, axis=0)
    found = resolve(tokenizer, vectors, tokenizer.encode(vectors))
    assert (found[:, :2] == [2, 7]).all()
    nearest = np.argsort(tokenizer.distances(vectors[:1], found[:1, :2])[0], kind="stable")
    np.testing.assert_array_equal(found[:, 2], nearest)
    assert sorted(found[:, 2].tolist()) == list(range(512))


def test_only_a_full_prefix_changes_the_code_before_the_last() -> None:
    tokenizer: Any = TreeDouble()
    tokenizer.leaf[300] = tokenizer.leaf[7] + 1e-3  # where the fallback has to go: beyond 256 again
    crowd = items_at(tokenizer, [2, 7, 9], 1, 0.0).repeat(514, axis=0)
    bystander = items_at(tokenizer, [2, 300, 9], 1, 0.0)  # owns what the first of them would take
    vectors = np.concatenate([crowd, bystander])
    codes = tokenizer.encode(vectors)
    assert codes[-1].tolist() == [2, 300, 9]
    found = resolve(tokenizer, vectors, codes)
    assert alone(found).all()
    assert found[-1].tolist() == [2, 300, 9]
    assert (found[:, 0] == 2).all()  # the root code is the last to change
    assert (found[:512, 1] == 7).all()
    nearest = np.argsort(tokenizer.distances(crowd[:1], codes[:1, :2])[0], kind="stable")
    assert found[512:514].tolist() == [[2, 300, int(nearest[1])], [2, 300, int(nearest[2])]]
    np.testing.assert_array_equal(resolve(tokenizer, vectors, found), found)


def test_domains_do_not_know_of_each_other() -> None:
    # Two catalogues with the same contents get the same identifiers: sharing between domains is the point.
    tokenizer: Any = TreeDouble()
    one = crowded(tokenizer, 3)
    found = resolve(tokenizer, one, tokenizer.encode(one))
    np.testing.assert_array_equal(resolve(tokenizer, one.copy(), tokenizer.encode(one)), found)
    both = np.concatenate([one, one])
    assert alone(resolve(tokenizer, both, tokenizer.encode(both))).all()
