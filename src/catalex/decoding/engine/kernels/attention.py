# mypy: ignore-errors
"""Attentions of encoder and decoder, each with its norm, its projections and its residual in one kernel.

Every program loops over its share of the heads and adds each head's contribution to the output; neither
queries nor weights nor attended values are ever written. Attention is unscaled, as in T5, with a float32
softmax. The decoder's attentions are in the absorbed form (see `weights`): what is attended to are normed
residuals and the encoder's output themselves, the same for all heads.
"""

from __future__ import annotations

import triton
import triton.language as tl

from catalex.decoding.engine.kernels.residual import normed, whole


@triton.jit(do_not_specialize=["rows", "tokens"])
def encoder_attention(
    x_ptr,  # (PARTS, B T, H) float32
    to_ptr,  # (SPLITS, B T, H) float32
    qkv_ptr,  # (H, 3 h d)
    out_ptr,  # (h d, H)
    bias_ptr,  # (h, 2 FAR + 1) float32, by key position minus query position
    lengths_ptr,  # (B,)
    rows,
    tokens,
    H: tl.constexpr,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    FAR: tl.constexpr,
    PARTS: tl.constexpr,
    SPLITS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Self-attention with T5's relative bias; a program holds the `BLOCK` >= T tokens of a user."""
    dtype = qkv_ptr.dtype.element_ty
    user, split = tl.program_id(0), tl.program_id(1)
    token = tl.arange(0, BLOCK)
    column = tl.arange(0, H)
    within = tl.arange(0, D)
    places = (user * tokens + token)[:, None] * H + column[None, :]
    inside = (token < tokens)[:, None]
    n = normed(whole(x_ptr, places, inside, rows * H, PARTS), H, dtype)
    is_key = (token < tl.load(lengths_ptr + user))[None, :]
    distance = token[None, :] - token[:, None] + FAR
    inner: tl.constexpr = HEADS * D
    w_ptrs = qkv_ptr + column[:, None] * (3 * inner) + within[None, :]
    out_ptrs = out_ptr + within[:, None] * H + column[None, :]
    acc = tl.zeros((BLOCK, H), tl.float32)
    share: tl.constexpr = HEADS // SPLITS
    for turn in tl.range(0, share, num_stages=1):
        head = split * share + turn
        q = tl.dot(n, tl.load(w_ptrs + head * D), input_precision=PRECISION).to(dtype)
        k = tl.dot(n, tl.load(w_ptrs + inner + head * D), input_precision=PRECISION).to(dtype)
        v = tl.dot(n, tl.load(w_ptrs + 2 * inner + head * D), input_precision=PRECISION).to(dtype)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        s += tl.load(bias_ptr + head * (2 * FAR + 1) + distance)
        s = tl.where(is_key, s, float("-inf"))
        p = tl.exp(s - tl.max(s, 1)[:, None])
        o = tl.dot(p.to(dtype), v, input_precision=PRECISION) / tl.sum(p, 1)[:, None]
        acc = tl.dot(o.to(dtype), tl.load(out_ptrs + head * D * H), acc, input_precision=PRECISION)
    acc += whole(x_ptr, places, inside & (split == 0), rows * H, PARTS)
    tl.store(to_ptr + split * rows * H + places, acc, inside)


@triton.jit
def earlier(cache_ptr, ancestors_ptr, slot, row, rows, inside, POSITION: tl.constexpr, H: tl.constexpr):
    """``(BLOCK, H)`` cached at a position by the rows that these descend from."""
    ancestor = tl.load(ancestors_ptr + POSITION * rows + row, inside, 0).to(tl.int64)
    places = slot.to(tl.int64) * POSITION + ancestor[:, None] * H + tl.arange(0, H)[None, :]
    return tl.load(cache_ptr + places)


@triton.jit(do_not_specialize=["rows", "slot", "layer"])
def self_attention(
    x_ptr,  # (PARTS, R, H) float32
    to_ptr,  # (SPLITS, R, H) float32
    read,  # descriptor of (l h H, H) in tiles (H, H)
    write,  # the same
    bias_ptr,  # (h, P) float32, by how many positions back the key is
    cache_ptr,  # (P - 1, room for rows, H): normed residuals of the earlier positions
    ancestors_ptr,  # (P - 1, R) int32
    rows,
    slot,  # numbers of a position's cache
    layer,
    H: tl.constexpr,
    HEADS: tl.constexpr,
    P: tl.constexpr,
    POSITION: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    PARTS: tl.constexpr,
    SPLITS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Each row attends to itself and, by number, to the rows it descends from: nothing is re-ordered."""
    dtype = read.dtype
    split = tl.program_id(1)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < rows
    places = row[:, None] * H + tl.arange(0, H)[None, :]
    n = normed(whole(x_ptr, places, inside[:, None], rows * H, PARTS), H, dtype)
    if POSITION < P - 1:
        here = slot.to(tl.int64) * POSITION + places
        tl.store(cache_ptr + here, n, inside[:, None] & (split == 0))
    # the nearest three stay in registers for all heads
    if POSITION > 0:
        n1 = earlier(cache_ptr, ancestors_ptr, slot, row, rows, inside, POSITION - 1, H)
    if POSITION > 1:
        n2 = earlier(cache_ptr, ancestors_ptr, slot, row, rows, inside, POSITION - 2, H)
    if POSITION > 2:
        n3 = earlier(cache_ptr, ancestors_ptr, slot, row, rows, inside, POSITION - 3, H)
    acc = tl.zeros((BLOCK, H), tl.float32)
    share: tl.constexpr = HEADS // SPLITS
    for turn in tl.range(0, share, num_stages=STAGES):
        head = split * share + turn
        tile = (layer * HEADS + head) * H
        q = tl.dot(n, read.load([tile, 0]), input_precision=PRECISION)
        s = tl.sum(q * n, 1) + tl.load(bias_ptr + head * P)
        largest = s
        if POSITION > 0:
            s1 = tl.sum(q * n1, 1) + tl.load(bias_ptr + head * P + 1)
            largest = tl.maximum(largest, s1)
        if POSITION > 1:
            s2 = tl.sum(q * n2, 1) + tl.load(bias_ptr + head * P + 2)
            largest = tl.maximum(largest, s2)
        if POSITION > 2:
            s3 = tl.sum(q * n3, 1) + tl.load(bias_ptr + head * P + 3)
            largest = tl.maximum(largest, s3)
        weight = tl.exp(s - largest)
        total = weight
        c = weight[:, None] * n
        if POSITION > 0:
            weight = tl.exp(s1 - largest)
            total += weight
            c += weight[:, None] * n1
        if POSITION > 1:
            weight = tl.exp(s2 - largest)
            total += weight
            c += weight[:, None] * n2
        if POSITION > 2:
            weight = tl.exp(s3 - largest)
            total += weight
            c += weight[:, None] * n3
        for back in tl.static_range(4, POSITION + 1):
            far = earlier(cache_ptr, ancestors_ptr, slot, row, rows, inside, POSITION - back, H)
            s = tl.sum(q * far, 1) + tl.load(bias_ptr + head * P + back)
            new = tl.maximum(largest, s)
            keep, weight = tl.exp(largest - new), tl.exp(s - new)
            total = total * keep + weight
            c = c * keep[:, None] + weight[:, None] * far
            largest = new
        c = (c / total[:, None]).to(dtype)
        acc = tl.dot(c, write.load([tile, 0]), acc, input_precision=PRECISION)
    acc += whole(x_ptr, places, inside[:, None] & (split == 0), rows * H, PARTS)
    tl.store(to_ptr + split * rows * H + places, acc, inside[:, None])


@triton.jit(do_not_specialize=["rows", "beams", "tokens", "layer"])
def cross_attention(
    x_ptr,  # (PARTS, B W, H) float32
    to_ptr,  # (SPLITS, B W, H) float32
    encoded_ptr,  # (B, T, H): the encoder's output without its gain
    lengths_ptr,  # (B,)
    read,  # descriptor of (l h H, H) in tiles (H, H)
    write,  # the same
    rows,
    beams,
    tokens,
    layer,
    H: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
    KEYS: tl.constexpr,
    TILES: tl.constexpr,
    STAGES: tl.constexpr,
    PARTS: tl.constexpr,
    SPLITS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The beams of a user, `BLOCK` at a time, look at the user's tokens, `KEYS` x `TILES` >= T of them."""
    dtype = read.dtype
    user, split = tl.program_id(0), tl.program_id(2)
    beam = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    column = tl.arange(0, H)
    key = tl.arange(0, KEYS)
    inside = (beam < beams)[:, None]
    places = (user * beams + beam)[:, None] * H + column[None, :]
    n = normed(whole(x_ptr, places, inside, rows * H, PARTS), H, dtype)
    length = tl.load(lengths_ptr + user)
    encoded_ptrs = encoded_ptr + (user * tokens + key)[:, None] * H + column[None, :]
    if TILES == 1:
        encoded = tl.load(encoded_ptrs, (key < length)[:, None], 0.0)
    acc = tl.zeros((BLOCK, H), tl.float32)
    share: tl.constexpr = HEADS // SPLITS
    for turn in tl.range(0, share, num_stages=STAGES):
        head = split * share + turn
        tile = (layer * HEADS + head) * H
        q = tl.dot(n, read.load([tile, 0]), input_precision=PRECISION).to(dtype)
        if TILES == 1:
            s = tl.dot(q, tl.trans(encoded), input_precision=PRECISION)
            s = tl.where((key < length)[None, :], s, float("-inf"))
            p = tl.exp(s - tl.max(s, 1)[:, None])
            c = tl.dot(p.to(dtype), encoded, input_precision=PRECISION) / tl.sum(p, 1)[:, None]
        else:
            c = tl.zeros((BLOCK, H), tl.float32)
            largest = tl.full((BLOCK,), float("-inf"), tl.float32)
            total = tl.zeros((BLOCK,), tl.float32)
            for number in range(TILES):
                here = key + number * KEYS < length
                part = tl.load(encoded_ptrs + number * KEYS * H, here[:, None], 0.0)
                s = tl.dot(q, tl.trans(part), input_precision=PRECISION)
                s = tl.where(here[None, :], s, float("-inf"))
                new = tl.maximum(largest, tl.max(s, 1))  # finite from the first tile on: no history is empty
                keep = tl.exp(largest - new)
                p = tl.exp(s - new[:, None])
                total = total * keep + tl.sum(p, 1)
                c = tl.dot(p.to(dtype), part, c * keep[:, None], input_precision=PRECISION)
                largest = new
            c = c / total[:, None]
        acc = tl.dot(c.to(dtype), write.load([tile, 0]), acc, input_precision=PRECISION)
    acc += whole(x_ptr, places, inside & (split == 0), rows * H, PARTS)
    tl.store(to_ptr + split * rows * H + places, acc, inside)
