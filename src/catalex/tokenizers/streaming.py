"""Codes of catalogues that do not fit into memory: vectors are read, checked and quantized piece by piece."""

from __future__ import annotations

import numpy as np

from catalex.progress import Track
from catalex.tokenizers.base import Tokenizer
from catalex.tokenizers.training_set import check_vectors
from catalex.types import Codes, Floats

PIECE = 65_536
"""Vectors at a time, 100 MB at a width of 384. A multiple of `quantize.distances.BLOCK`, so that the blocks
that are computed, and with them the codes, are those of one call with all vectors."""


def encode_in_pieces(tokenizer: Tokenizer, vectors: Floats, *, name: str = "") -> Codes:
    """``tokenizer.encode(vectors)`` in memory that does not grow with N, but for the codes ``(N, L)``.

    Args:
        tokenizer: A trained one.
        vectors: ``(N, D)``, perhaps a memory map (`numpy.memmap`) of a file larger than the memory.
        name: Of the domain, for progress.

    Raises:
        CatalexError: When a vector holds NaN or infinite values or has another width than the tokenizer's.
    """
    place = f"vectors to tokenize of {name}" if name else "vectors to tokenize"
    codes = np.empty((len(vectors), tokenizer.space.levels), np.int32)
    with Track(f"tokenize {name}".strip(), len(vectors), "items") as track:
        for start in range(0, len(vectors), PIECE):
            piece = np.asarray(vectors[start : start + PIECE])
            check_vectors(piece, vectors.shape[-1], place, first=start)  # so that the row is named rightly
            codes[start : start + PIECE] = tokenizer.encode(piece)
            track.advance(len(piece))
    return codes
