# mypy: ignore-errors
"""The last norm, the product with the tied embeddings, and the log-sum-exp over the whole vocabulary."""

from __future__ import annotations

import triton
import triton.language as tl

from catalex.decoding.engine.kernels.residual import normed, whole


@triton.jit(do_not_specialize=["rows", "vocabulary", "low", "span"])
def head(
    x_ptr,  # (PARTS, R, H) float32
    w,  # descriptor of (H, V padded) in tiles (H, CHUNK)
    logits_ptr,  # (R, span) float32
    log_sums_ptr,  # (SPLITS, R) float32, of each share of the vocabulary
    rows,
    vocabulary,
    low,
    span,
    H: tl.constexpr,
    SHARE: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    STAGES: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """All V tokens are summed over, `SHARE` a program; only those of ``[low, low + span)`` are written."""
    split = tl.program_id(1)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    places = row[:, None] * H + tl.arange(0, H)[None, :]
    n = normed(whole(x_ptr, places, inside[:, None], rows * H, PARTS), H, w.dtype)
    token = tl.arange(0, CHUNK)
    largest = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for piece in tl.range(0, SHARE, CHUNK, num_stages=STAGES):
        begin = split * SHARE + piece
        logits = tl.dot(n, w.load([0, begin]), input_precision=PRECISION)
        if (begin + CHUNK > low) & (begin < low + span):
            place = begin + token - low
            written = inside[:, None] & ((place >= 0) & (place < span))[None, :]
            tl.store(logits_ptr + row.to(tl.int64)[:, None] * span + place[None, :], logits, written)
        logits = tl.where((begin + token < vocabulary)[None, :], logits, float("-inf"))
        new = tl.maximum(largest, tl.max(logits, 1))
        total = total * tl.exp(largest - new) + tl.sum(tl.exp(logits - new[:, None]), 1)
        largest = new
    tl.store(log_sums_ptr + split * rows + row, largest + tl.log(total), inside)
