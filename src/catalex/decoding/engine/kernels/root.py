# mypy: ignore-errors
"""The first step, which has one row a user: what a tile of beams would waste fifteen sixteenths of.

Attention of the first position to itself is a product with one matrix. Cross-attention is cut in three:
queries of many users at once (`project`), one user's heads as the rows of a tile (`attend`), and the heads'
outputs of many users at once (`collect`).
"""

from __future__ import annotations

import triton
import triton.language as tl

from catalex.decoding.engine.kernels.residual import normed, whole


@triton.jit(do_not_specialize=["rows", "layer"])
def first_self(
    x_ptr,  # (PARTS, R, H) float32
    to_ptr,  # (R, H) float32
    w,  # descriptor of (l H, H) in tiles (H, H): all heads' values and outputs in one
    cache_ptr,  # (., H)
    rows,
    layer,
    H: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
    CACHED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Self-attention to nothing but itself."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = (row < rows)[:, None]
    places = row[:, None] * H + tl.arange(0, H)[None, :]
    x = whole(x_ptr, places, inside, rows * H, PARTS)
    n = normed(x, H, w.dtype)
    if CACHED:
        tl.store(cache_ptr + places, n, inside)
    tl.store(to_ptr + places, tl.dot(n, w.load([layer * H, 0]), x, input_precision=PRECISION), inside)


@triton.jit(do_not_specialize=["rows", "layer"])
def project(
    x_ptr,  # (PARTS, R, H) float32
    q_ptr,  # (R, h, H) of the weights' type
    read,  # descriptor of (l h H, H) in tiles (H, H)
    rows,
    layer,
    H: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Queries of one head."""
    head = tl.program_id(1)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    column = tl.arange(0, H)
    inside = (row < rows)[:, None]
    x = whole(x_ptr, row[:, None] * H + column[None, :], inside, rows * H, PARTS)
    q = tl.dot(
        normed(x, H, read.dtype), read.load([(layer * HEADS + head) * H, 0]), input_precision=PRECISION
    )
    tl.store(q_ptr + (row[:, None] * HEADS + head) * H + column[None, :], q.to(read.dtype), inside)


@triton.jit(do_not_specialize=["tokens"])
def attend(
    q_ptr,  # (B, h, H), replaced by what was attended to
    encoded_ptr,  # (B, T, H)
    lengths_ptr,  # (B,)
    tokens,
    H: tl.constexpr,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    TILES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """All heads of a user."""
    user = tl.program_id(0)
    head = tl.arange(0, ROWS)
    column = tl.arange(0, H)
    key = tl.arange(0, KEYS)
    places = (user * HEADS + head)[:, None] * H + column[None, :]
    inside = (head < HEADS)[:, None]
    q = tl.load(q_ptr + places, inside, 0.0)
    length = tl.load(lengths_ptr + user)
    c = tl.zeros((ROWS, H), tl.float32)
    largest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    for number in range(TILES):
        here = key + number * KEYS < length
        ptrs = encoded_ptr + (user * tokens + number * KEYS + key)[:, None] * H + column[None, :]
        part = tl.load(ptrs, here[:, None], 0.0)
        s = tl.dot(q, tl.trans(part), input_precision=PRECISION)
        s = tl.where(here[None, :], s, float("-inf"))
        new = tl.maximum(largest, tl.max(s, 1))
        keep = tl.exp(largest - new)
        p = tl.exp(s - new[:, None])
        total = total * keep + tl.sum(p, 1)
        c = tl.dot(p.to(q.dtype), part, c * keep[:, None], input_precision=PRECISION)
        largest = new
    tl.store(q_ptr + places, (c / total[:, None]).to(q.dtype), inside)


@triton.jit(do_not_specialize=["rows", "layer"])
def collect(
    x_ptr,  # (PARTS, R, H) float32
    to_ptr,  # (SPLITS, R, H) float32
    c_ptr,  # (R, h, H)
    write,  # descriptor of (l h H, H) in tiles (H, H)
    rows,
    layer,
    H: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
    SPLITS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The heads' contributions and the residual."""
    split = tl.program_id(1)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    column = tl.arange(0, H)
    inside = (row < rows)[:, None]
    places = row[:, None] * H + column[None, :]
    acc = whole(x_ptr, places, inside & (split == 0), rows * H, PARTS)
    share: tl.constexpr = HEADS // SPLITS
    for turn in tl.range(0, share, num_stages=1):
        head = split * share + turn
        c = tl.load(c_ptr + (row[:, None] * HEADS + head) * H + column[None, :], inside, 0.0)
        acc = tl.dot(c, write.load([(layer * HEADS + head) * H, 0]), acc, input_precision=PRECISION)
    tl.store(to_ptr + split * rows * H + places, acc, inside)
