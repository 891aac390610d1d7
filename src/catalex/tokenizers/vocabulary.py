"""`Vocabulary`: codes to the tokens of a recommender, and back.

====================== =========================================================
tokens                 meaning
====================== =========================================================
0                      padding, and start of the decoder
from 1                 codes: one range a codebook, in the order of the levels;
                       levels that share a codebook share its range
after them             user tokens
last                   end of sequence
====================== =========================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from catalex.tokenizers.base import CodeSpace
from catalex.types import Codes, Ints

PAD = 0
"""Padding, and the first input of the decoder."""


@dataclass(frozen=True)
class Vocabulary:
    """Token numbers for identifiers of `space`.

    Attributes:
        space: Levels, sizes and shared codebooks.
        user_tokens: Number of user tokens; 0 is recommended, TIGER has 2,000.
    """

    space: CodeSpace
    user_tokens: int = 0

    def __post_init__(self) -> None:
        sizes: dict[int, int] = {}
        for size, group in zip(self.space.sizes, self.space.groups, strict=True):
            if sizes.setdefault(group, size) != size:
                raise ValueError(f"codebook {group} has different sizes: {sizes[group]} and {size}")

    @cached_property
    def offsets(self) -> Ints:
        """``(L,)`` token of code 0 at each level."""
        first: dict[int, int] = {}
        free = PAD + 1
        for size, group in zip(self.space.sizes, self.space.groups, strict=True):
            if group not in first:
                first[group] = free
                free += size
        return np.array([first[group] for group in self.space.groups], np.int64)

    @property
    def pad(self) -> int:
        """Padding, and start of the decoder."""
        return PAD

    @cached_property
    def codes_end(self) -> int:
        """One past the last token that stands for a code."""
        return max(int(offset) + size for offset, size in zip(self.offsets, self.space.sizes, strict=True))

    @property
    def eos(self) -> int:
        """End of sequence, the last token."""
        return self.codes_end + self.user_tokens

    @property
    def size(self) -> int:
        """V, number of tokens."""
        return self.eos + 1

    def level_range(self, level: int) -> range:
        """Tokens of the codes of `level` (from 0)."""
        start = int(self.offsets[level])
        return range(start, start + self.space.sizes[level])

    def user(self, number: int) -> int:
        """The token of a user; users beyond `user_tokens` share tokens (hashing by remainder, as in
        TIGER)."""
        if not self.user_tokens:
            raise ValueError("this vocabulary has no user tokens")
        return self.codes_end + number % self.user_tokens

    def tokens(self, codes: Codes) -> Ints:
        """Tokens ``(N, L)`` of codes ``(N, L)``.

        Raises:
            ValueError: When a code is out of the range of its level.
        """
        self._check(np.asarray(codes, np.int64), "code")
        return np.asarray(codes, np.int64) + self.offsets

    def codes(self, tokens: Ints) -> Codes:
        """Codes ``(N, L)`` of tokens ``(N, L)``; the inverse of `tokens`.

        Raises:
            ValueError: When a token does not belong to its level.
        """
        codes = np.asarray(tokens, np.int64) - self.offsets
        self._check(codes, "token")
        return codes.astype(np.int32)

    def _check(self, codes: Ints, noun: str) -> None:
        if codes.ndim != 2 or codes.shape[1] != self.space.levels:
            raise ValueError(f"expected (N, {self.space.levels}) {noun}s, found shape {codes.shape}")
        wrong = (codes < 0) | (codes >= np.asarray(self.space.sizes))
        if wrong.any():
            row, level = map(int, np.argwhere(wrong)[0])
            raise ValueError(f"the {noun} in row {row} is outside the range of level {level + 1}")
