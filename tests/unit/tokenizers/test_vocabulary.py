"""The table of token layouts, and the round trip."""

from __future__ import annotations

import numpy as np
import pytest

from catalex.tokenizers.base import CodeSpace
from catalex.tokenizers.vocabulary import Vocabulary

TIGER = CodeSpace((256,) * 4, (0, 1, 2, 3))
UTGREC = CodeSpace((256, 512, 512), (0, 1, 1))
UNITOK = CodeSpace((256,) * 4 + (10,), (0, 1, 2, 3, 4))


@pytest.mark.parametrize(
    ("space", "users", "ranges", "eos"),
    [
        (TIGER, 0, [(1, 256), (257, 512), (513, 768), (769, 1024)], 1025),
        (TIGER, 2000, [(1, 256), (257, 512), (513, 768), (769, 1024)], 3025),
        (UTGREC, 0, [(1, 256), (257, 768), (257, 768)], 769),
        (UTGREC, 1, [(1, 256), (257, 768), (257, 768)], 770),
        (UNITOK, 0, [(1, 256), (257, 512), (513, 768), (769, 1024), (1025, 1034)], 1035),
    ],
)
def test_layout(space: CodeSpace, users: int, ranges: list[tuple[int, int]], eos: int) -> None:
    vocabulary = Vocabulary(space, users)
    assert [(r[0], r[-1]) for r in map(vocabulary.level_range, range(space.levels))] == ranges
    assert (vocabulary.pad, vocabulary.eos, vocabulary.size) == (0, eos, eos + 1)
    tokens = {vocabulary.user(number) for number in range(3 * users)} if users else set()
    assert tokens == set(range(eos - users, eos))


@pytest.mark.parametrize("space", [TIGER, UTGREC, UNITOK])
def test_round_trip(space: CodeSpace) -> None:
    vocabulary = Vocabulary(space, 5)
    codes = np.random.default_rng(0).integers(0, space.sizes, (50, space.levels)).astype(np.int32)
    tokens = vocabulary.tokens(codes)
    for level in range(space.levels):
        assert set(tokens[:, level]) <= set(vocabulary.level_range(level))
    np.testing.assert_array_equal(vocabulary.codes(tokens), codes)
    assert vocabulary.codes(tokens).dtype == np.int32


def test_levels_of_one_codebook_share_tokens() -> None:
    tokens = Vocabulary(UTGREC).tokens(np.array([[255, 7, 7]], np.int32))
    assert tokens.tolist() == [[256, 264, 264]]


def test_wrong_codes_and_tokens_are_refused() -> None:
    vocabulary = Vocabulary(UTGREC)
    with pytest.raises(ValueError, match="row 1 is outside the range of level 1"):
        vocabulary.tokens(np.array([[0, 0, 0], [256, 0, 0]], np.int32))
    with pytest.raises(ValueError, match="row 0 is outside the range of level 2"):
        vocabulary.codes(np.array([[1, 256, 300]]))
    with pytest.raises(ValueError, match="shape"):
        vocabulary.tokens(np.zeros((1, 2), np.int32))
    with pytest.raises(ValueError, match="different sizes"):
        Vocabulary(CodeSpace((4, 5), (0, 0)))
    with pytest.raises(ValueError, match="no user tokens"):
        vocabulary.user(1)
