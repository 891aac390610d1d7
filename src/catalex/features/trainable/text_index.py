"""Texts of N items as word pieces, kept flat, and padded batches of them.

T tokens of a text with its two specials; V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from catalex.features.base import ItemContent
from catalex.features.text import clean
from catalex.features.trainable.base import TextTargets
from catalex.types import Bools, Ints

BLOCK = 512
"""Items between two reports of progress."""

STEP = 16
"""Batches are padded to a multiple of this many tokens: few shapes, so kernels and graphs are found again."""

SPECIALS = 2
"""The token before a text (CLS) and the one behind it (SEP)."""

CHARACTERS_A_TOKEN = 32
"""Characters read for each token that may be used. English has 4 to 5 a word piece, so nothing that would be
used is lost, and a text of a megabyte costs as much as one of a page."""


@dataclass(frozen=True)
class TokenizedTexts:
    """N texts as word pieces without specials; `batch` adds those.

    Attributes:
        pieces: Flat pieces and offsets; also what a text decoder has to reconstruct.
        start, end, padding: Ids of CLS, SEP and PAD.
        longest: Most tokens of a text, specials included.
    """

    pieces: TextTargets
    start: int
    end: int
    padding: int
    longest: int

    @property
    def lengths(self) -> Ints:
        """Pieces of each text ``(N,)``; 0 for one without words."""
        return np.diff(self.pieces.offsets)

    def batch(self, rows: Ints) -> tuple[Ints, Bools]:
        """Tokens ``(B, T)`` and which of them are real, T the longest of the texts rounded up to `STEP`.

        A text without words is CLS and SEP alone, so that no row is all padding.
        """
        lengths = self.lengths[rows]
        longest = int(lengths.max(initial=0)) + SPECIALS
        width = min(-(-longest // STEP) * STEP, max(self.longest, longest))
        place = np.arange(width)
        real = place < lengths[:, None] + SPECIALS
        inside = (place > 0) & (place <= lengths[:, None])
        tokens = np.full((len(rows), width), self.padding, np.int64)
        tokens[inside] = self.pieces.tokens[
            (self.pieces.offsets[rows][:, None] + place - 1)[inside]
        ]  # row-major on both sides, so pieces stay in order
        tokens[:, 0] = self.start
        tokens[np.arange(len(rows)), lengths + 1] = self.end
        return tokens, real


def tokenize_texts(tokenizer: Any, texts: Sequence[str], longest: int) -> list[list[int]]:
    """Word pieces of each text without specials, at most ``longest - SPECIALS``; empty without words."""
    cleaned = [
        clean(text[: 4 * CHARACTERS_A_TOKEN * longest])[: CHARACTERS_A_TOKEN * longest] for text in texts
    ]
    pieces: list[list[int]] = tokenizer(
        cleaned,
        add_special_tokens=False,
        truncation=True,
        max_length=longest - SPECIALS,
        return_attention_mask=False,
        return_token_type_ids=False,
    )["input_ids"]
    return pieces


class TextCollector:
    """Grows a `TokenizedTexts` block by block, so that N texts never lie in memory as Python lists of ids."""

    def __init__(self, tokenizer: Any, longest: int) -> None:
        self.tokenizer, self.longest = tokenizer, longest
        self._pieces: list[Ints] = [np.zeros(0, np.int64)]
        self._lengths: list[int] = []

    def add(self, texts: Sequence[str]) -> None:
        for pieces in tokenize_texts(self.tokenizer, texts, self.longest) if texts else []:
            self._pieces.append(np.asarray(pieces, np.int64))
            self._lengths.append(len(pieces))

    def finish(self) -> TokenizedTexts:
        offsets = np.concatenate([[0], np.cumsum(self._lengths, dtype=np.int64)]).astype(np.int64)
        return TokenizedTexts(
            TextTargets(np.concatenate(self._pieces), offsets),
            start=int(self.tokenizer.cls_token_id),
            end=int(self.tokenizer.sep_token_id),
            padding=int(self.tokenizer.pad_token_id),
            longest=self.longest,
        )


def blocks(
    items: Sequence[ItemContent], advance: Callable[[int], None] | None, size: int = BLOCK
) -> Iterator[Sequence[ItemContent]]:
    """`items` in blocks; `advance` is told of each when the caller has finished with it."""
    for start in range(0, len(items), size):
        block = items[start : start + size]
        yield block
        if advance is not None:
            advance(len(block))
