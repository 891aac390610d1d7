"""Tokenizing piece by piece: the codes of one call, from a memory map, with errors at the right row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from catalex.data.histories import Histories
from catalex.errors import CatalexError
from catalex.tokenizers import Tokenizer, TokenizerDomain, make_tokenizer
from catalex.tokenizers.streaming import encode_in_pieces
from catalex.types import Floats


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> tuple[Tokenizer, Floats]:
    monkeypatch.setattr("catalex.tokenizers.streaming.PIECE", 256)
    vectors = np.random.default_rng(0).normal(size=(700, 8)).astype(np.float32)
    tokenizer = make_tokenizer({"name": "rqkmeans", "levels": 2, "codebook_size": 16, "iterations": 2})
    domain = TokenizerDomain("a", vectors, Histories.from_lists([[0, 1]]), "none")
    tokenizer.fit([domain], seed=0, device="cpu")
    return tokenizer, vectors


def test_a_memory_map_gives_the_codes_of_one_call(fitted: tuple[Tokenizer, Floats], tmp_path: Path) -> None:
    tokenizer, vectors = fitted
    vectors.tofile(tmp_path / "vectors.f32")
    mapped = np.memmap(tmp_path / "vectors.f32", np.float32, mode="r", shape=vectors.shape)
    np.testing.assert_array_equal(encode_in_pieces(tokenizer, mapped), tokenizer.encode(vectors))
    assert encode_in_pieces(tokenizer, vectors[:0]).shape == (0, 2)


def test_a_bad_vector_is_named_by_its_row_in_the_whole(fitted: tuple[Tokenizer, Floats]) -> None:
    tokenizer, vectors = fitted
    vectors[600, 3] = np.nan
    with pytest.raises(CatalexError, match=r"beauty, row 600.*NaN or infinite values"):
        encode_in_pieces(tokenizer, vectors, name="beauty")
    with pytest.raises(CatalexError, match="another width"):
        encode_in_pieces(tokenizer, vectors[:, :5])


def test_large_finite_vectors_pass(fitted: tuple[Tokenizer, Floats]) -> None:
    tokenizer, _ = fitted
    assert tokenizer.encode(np.full((300, 8), 3e38, np.float32)).shape == (300, 2)  # their sum overflows
