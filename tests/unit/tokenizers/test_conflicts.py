"""Conflict handling against an obvious oracle that places one item at a time, and against its invariants."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from catalex.errors import CatalexError
from catalex.quantize import residual_distances, residual_encode
from catalex.tokenizers.base import CodeSpace
from catalex.tokenizers.conflicts import resolve, space_after
from catalex.types import Codes, Floats


class TinyTokenizer:
    """Random residual codebooks; all that conflict handling may ask of a tokenizer."""

    def __init__(self, sizes: tuple[int, ...], seed: int, width: int = 3) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.codebooks = [torch.randn(size, width, generator=generator) for size in sizes]
        self.space = CodeSpace(sizes, tuple(range(len(sizes))))
        self.order = tuple(range(len(sizes)))

    def encode(self, vectors: Floats) -> Codes:
        return residual_encode(torch.from_numpy(vectors), self.codebooks).numpy().astype(np.int32)

    def distances(self, vectors: Floats, prefix: Codes) -> Floats:
        found: Floats = residual_distances(
            torch.from_numpy(vectors), torch.from_numpy(prefix.astype(np.int64)), self.codebooks
        ).numpy()
        return found


def oracle(tokenizer: TinyTokenizer, vectors: Floats, codes: Codes, reserved: Codes) -> Codes:
    """The rule of the specification, one item and one set lookup at a time."""
    sizes, levels = tokenizer.space.sizes, tokenizer.space.levels
    owned = {tuple(row) for row in reserved.tolist()}

    def ask(item: int, prefix: tuple[int, ...]) -> Floats:
        return tokenizer.distances(
            vectors[item : item + 1], np.array([prefix], np.int32).reshape(1, len(prefix))
        )[0]

    groups: dict[tuple[int, ...], list[int]] = {}
    for item, row in enumerate(codes.tolist()):
        groups.setdefault(tuple(row), []).append(item)
    result, near, left = codes.copy(), {}, []
    for identifier, items in groups.items():
        for item in items:
            near[item] = float(ask(item, identifier[:-1])[identifier[-1]])
        items.sort(key=lambda item: (near[item], item))
        keeps = identifier not in owned
        left += items[1:] if keeps else items
    moving = set(left)
    owned |= {tuple(codes[item].tolist()) for item in range(len(codes)) if item not in moving}

    def room(prefix: tuple[int, ...]) -> int:
        below = int(np.prod(sizes[len(prefix) :], dtype=np.int64))
        return below - sum(identifier[: len(prefix)] == prefix for identifier in owned)

    for depth in range(levels - 1, -1, -1):
        left.sort(key=lambda item: (tuple(codes[item, :depth].tolist()), near[item], item))
        placed, waiting = [], []
        promised: dict[tuple[int, ...], int] = {}
        for item in left:
            prefix = tuple(codes[item, :depth].tolist())
            promised[prefix] = promised.get(prefix, 0) + 1
            (placed if promised[prefix] <= room(prefix) else waiting).append(item)
        chosen = {item: tuple(codes[item, :depth].tolist()) for item in placed}
        for _ in range(depth, levels):
            promised = {}
            for item in sorted(placed, key=lambda item: (chosen[item], near[item], item)):
                distance = ask(item, chosen[item])
                for code in np.argsort(distance, kind="stable").tolist():
                    child = (*chosen[item], code)
                    if promised.get(child, 0) < room(child):
                        promised[child] = promised.get(child, 0) + 1
                        chosen[item] = child
                        break
        owned |= set(chosen.values())
        for item, identifier in chosen.items():
            result[item] = identifier
        left = waiting
    assert not left
    return result


def make(items: int, sizes: tuple[int, ...], seed: int, *, twins: bool) -> tuple[Any, Floats, Codes]:
    tokenizer = TinyTokenizer(sizes, seed)
    vectors = np.random.default_rng(seed).normal(size=(items, 3)).astype(np.float32)
    if twins:
        vectors[items // 2 :] = vectors[: items - items // 2]
    return tokenizer, vectors, tokenizer.encode(vectors)


cases = st.tuples(
    st.sampled_from([(4, 4), (3, 2, 4), (2, 2, 2, 2), (1, 9), (16,)]),
    st.integers(0, 10**6),
    st.floats(0, 1),
    st.booleans(),
)


@settings(max_examples=150, deadline=None)
@given(cases, st.integers(0, 4))
def test_equals_the_oracle_and_keeps_the_invariants(case: Any, held: int) -> None:
    sizes, seed, load, twins = case
    capacity = int(np.prod(sizes))
    items = max(round(load * (capacity - held)), 1) if capacity > held else 1
    tokenizer, vectors, codes = make(items, sizes, seed, twins=twins)
    generator = np.random.default_rng(seed)
    picked = generator.permutation(capacity)[:held]
    reserved = np.stack(np.unravel_index(picked, sizes), 1).astype(np.int32)
    found = resolve(tokenizer, vectors, codes, reserved=reserved)
    np.testing.assert_array_equal(found, oracle(tokenizer, vectors, codes, reserved))
    owned = [tuple(row) for row in np.concatenate([reserved, found]).tolist()]
    assert len(set(owned)) == len(owned)
    counts = {tuple(r): 0 for r in codes.tolist()}
    for row in codes.tolist():
        counts[tuple(row)] += 1
    taken = {tuple(row) for row in reserved.tolist()}
    for before, after in zip(codes.tolist(), found.tolist(), strict=True):
        if counts[tuple(before)] == 1 and tuple(before) not in taken:
            assert before == after
    np.testing.assert_array_equal(resolve(tokenizer, vectors, found, reserved=reserved), found)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_the_order_of_the_items_changes_nothing(seed: int) -> None:
    tokenizer, vectors, codes = make(40, (4, 4, 4), seed, twins=False)
    order = np.random.default_rng(seed).permutation(40)
    one, other = resolve(tokenizer, vectors, codes), resolve(tokenizer, vectors[order], codes[order])
    np.testing.assert_array_equal(one[order], other)


def test_a_prefix_with_room_is_kept_and_the_closest_item_stays() -> None:
    tokenizer, vectors, codes = make(30, (4, 64), 1, twins=False)
    found = resolve(tokenizer, vectors, codes)
    np.testing.assert_array_equal(found[:, 0], codes[:, 0])
    for group in np.unique(codes, axis=0):
        rows = np.flatnonzero((codes == group).all(1))
        distance = tokenizer.distances(vectors[rows], codes[rows, :1])[np.arange(len(rows)), group[1]]
        assert (found[rows[distance.argmin()]] == group).all()


def test_the_order_of_equally_distant_items_is_their_index() -> None:
    tokenizer = TinyTokenizer((3, 5), 0)
    vectors = np.ones((5, 3), np.float32)
    codes = tokenizer.encode(vectors)
    found = resolve(tokenizer, vectors, codes)
    expected = np.argsort(tokenizer.distances(vectors[:1], codes[:1, :1])[0], kind="stable")
    np.testing.assert_array_equal(found[:, 1], expected)


def test_more_items_than_identifiers_are_refused() -> None:
    tokenizer, vectors, codes = make(9, (2, 4), 0, twins=False)
    with pytest.raises(CatalexError, match=r"more items than identifiers \(found 9; allowed: at most 8\)"):
        resolve(tokenizer, vectors, codes)


def test_digit_numbers_the_items_of_a_group() -> None:
    tokenizer = TinyTokenizer((4, 4), 0)
    codes = np.array([[1, 1], [0, 2], [1, 1], [3, 3], [1, 1], [0, 2]], np.int32)
    vectors: Any = np.zeros((6, 3), np.float32)
    found = resolve(tokenizer, vectors, codes, method="digit")  # type: ignore[arg-type]
    assert found.tolist() == [[1, 1, 0], [0, 2, 0], [1, 1, 1], [3, 3, 0], [1, 1, 2], [0, 2, 1]]
    new = resolve(tokenizer, vectors[:2], codes[:2], method="digit", reserved=found)  # type: ignore[arg-type]
    assert new.tolist() == [[1, 1, 3], [0, 2, 2]]
    assert space_after(tokenizer.space, "digit") == CodeSpace((4, 4, 256), (0, 1, 2))
    assert space_after(tokenizer.space, "reassign") == tokenizer.space


def test_digit_refuses_a_group_that_is_too_large() -> None:
    tokenizer: Any = TinyTokenizer((4, 4), 0)
    vectors, codes = np.zeros((257, 3), np.float32), np.zeros((257, 2), np.int32)
    assert resolve(tokenizer, vectors[:256], codes[:256], method="digit")[-1, -1] == 255
    with pytest.raises(CatalexError, match=r"more than 256 items share the codes \(0, 0\)"):
        resolve(tokenizer, vectors, codes, method="digit")


def test_none_changes_nothing_and_unknown_methods_are_named() -> None:
    tokenizer, vectors, codes = make(40, (2, 2), 0, twins=True)
    np.testing.assert_array_equal(resolve(tokenizer, vectors, codes, method="none"), codes)
    with pytest.raises(CatalexError, match="Did you mean 'digit'"):
        resolve(tokenizer, vectors, codes, method="digits")  # type: ignore[arg-type]


def test_no_items_give_no_identifiers() -> None:
    tokenizer: Any = TinyTokenizer((4, 4), 0)
    empty, codes = np.zeros((0, 3), np.float32), np.zeros((0, 2), np.int32)
    assert resolve(tokenizer, empty, codes).shape == (0, 2)
    assert resolve(tokenizer, empty, codes, method="digit").shape == (0, 3)


@pytest.mark.parametrize("chunk", [1, 7, 8192])
def test_a_crowd_under_one_prefix_is_shared_out_chunk_by_chunk(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("catalex.tokenizers.conflicts.CHUNK", chunk)
    tokenizer, vectors, codes = make(150, (4, 6, 8), 3, twins=True)
    codes[:90, :2] = codes[0, :2]  # more than fit under the prefix, some of them under the prefix above
    reserved = np.array([[*codes[0, :2], 3], [3, 5, 7]], np.int32)
    found = resolve(tokenizer, vectors, codes, reserved=reserved)
    np.testing.assert_array_equal(found, oracle(tokenizer, vectors, codes, reserved))
