# mypy: ignore-errors
"""Norm, two products with a ReLU between, and the residual: the hidden values never leave the chip."""

from __future__ import annotations

import triton
import triton.language as tl

from catalex.decoding.engine.kernels.residual import normed, whole


@triton.jit(do_not_specialize=["rows", "layer"])
def feed_forward(
    x_ptr,  # (PARTS, R, H) float32
    out_ptr,  # (SPLITS, R, H) float32
    wi,  # descriptor of (l H, F) in tiles (H, CHUNK)
    wo,  # descriptor of (l F, H) in tiles (CHUNK, H)
    rows,
    layer,
    H: tl.constexpr,
    F: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
    STAGES: tl.constexpr,
    PARTS: tl.constexpr,
    SPLITS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """`BLOCK` rows and a share of F a program, in pieces of `CHUNK`."""
    dtype = wi.dtype
    split = tl.program_id(1)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = (row < rows)[:, None]
    places = row[:, None] * H + tl.arange(0, H)[None, :]
    n = normed(whole(x_ptr, places, inside, rows * H, PARTS), H, dtype)
    share: tl.constexpr = F // SPLITS
    acc = tl.zeros((BLOCK, H), tl.float32)
    for piece in tl.range(0, share, CHUNK, num_stages=STAGES):
        begin = split * share + piece
        hidden = tl.dot(n, wi.load([layer * H, begin]), input_precision=PRECISION)
        hidden = tl.maximum(hidden, 0.0).to(dtype)
        acc = tl.dot(hidden, wo.load([layer * F + begin, 0]), acc, input_precision=PRECISION)
    # read again: kept, the residual would fill the registers meanwhile
    acc += whole(x_ptr, places, inside & (split == 0), rows * H, PARTS)
    tl.store(out_ptr + split * rows * H + places, acc, inside)
