"""Triton kernels of the packed T5: what lies between the matrix products, each in one pass over memory.

A training step of this model is bound by memory and by the number of kernels, hardly by arithmetic: its
matrices are 128 wide. So each kernel here reads its inputs once, keeps everything else in registers, and
takes dropout with it. Dropout decisions are a hash of (seed of the site, place), computed again on the way
back instead of being stored; `packed_triton.kept` is the same hash in plain torch. Sums over tokens
(gradients of gains, of the relative bias, of the embedding) are partial sums of fixed programs, added in a
fixed order: no atomics, so that a step gives the same bits each time.

Shape letters: ``M`` tokens, ``H`` model width, ``F`` feed-forward width, ``h`` heads of width ``d``, ``C``
tokens of a row, ``B`` examples, ``Q`` queries of an example (positions x heads). This module imports
triton; ask `packed_triton.available` first.
"""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def keep(seeds, site, index, threshold):
    """Whether a place keeps its value: a 24-bit hash of seed and place is at least `threshold`."""
    a = tl.load(seeds + 2 * site).to(tl.uint32)
    b = tl.load(seeds + 2 * site + 1).to(tl.uint32)
    x = index.to(tl.uint32) ^ a
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = ((x ^ (x >> 15)) + b) * 0x846CA68B
    x = x ^ (x >> 16)
    return (x >> 8).to(tl.int32) >= threshold


@triton.jit
def add_norm_forward(
    x, y, gain, seeds, site, threshold, scale, x_out, n_out, M,
    H: tl.constexpr, BM: tl.constexpr, ADD: tl.constexpr, DROP: tl.constexpr, DROP_NORM: tl.constexpr,
):  # fmt: skip
    """``x' = x + dropout(y)`` and ``n = x' / rms(x') * gain``, dropped out (site + 1) if DROP_NORM."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    cols = tl.arange(0, H)
    at = rows[:, None] * H + cols[None, :]
    inside = (rows < M)[:, None]
    v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        t = tl.load(y + at, mask=inside, other=0.0).to(tl.float32)
        if DROP:
            t = tl.where(keep(seeds, site, at, threshold), t * scale, 0.0)
        v += t
        tl.store(x_out + at, v, mask=inside)
    r = tl.rsqrt(tl.sum(v * v, 1) / H + 1e-6)
    n = v * r[:, None] * tl.load(gain + cols)[None, :]
    if DROP_NORM:
        n = tl.where(keep(seeds, site + 1, at, threshold), n * scale, 0.0)
    tl.store(n_out + at, n, mask=inside)


@triton.jit
def add_norm_backward(
    x, dx_in, dn, gain, seeds, site, threshold, scale, dx_out, dy_out, dgain, M, tiles,
    H: tl.constexpr, BM: tl.constexpr, ADD: tl.constexpr, RESIDUAL: tl.constexpr,
    DROP: tl.constexpr, DROP_NORM: tl.constexpr,
):  # fmt: skip
    """Gradients of x, y and, as one partial sum a program, of the gain; x is the x' of the way there."""
    program = tl.program_id(0)
    cols = tl.arange(0, H)
    g = tl.load(gain + cols)[None, :]
    total = tl.zeros((H,), tl.float32)
    for tile in range(program, tiles, tl.num_programs(0)):
        rows = tile * BM + tl.arange(0, BM)
        at = rows[:, None] * H + cols[None, :]
        inside = (rows < M)[:, None]
        v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        d = tl.load(dn + at, mask=inside, other=0.0).to(tl.float32)
        if DROP_NORM:
            d = tl.where(keep(seeds, site + 1, at, threshold), d * scale, 0.0)
        r = tl.rsqrt(tl.sum(v * v, 1) / H + 1e-6)[:, None]
        unit = v * r
        total += tl.sum(d * unit, 0)
        d = d * g
        dx = r * (d - unit * (tl.sum(d * unit, 1) / H)[:, None])
        if RESIDUAL:
            dx += tl.load(dx_in + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx_out + at, dx, mask=inside)
        if ADD:
            if DROP:
                dx = tl.where(keep(seeds, site, at, threshold), dx * scale, 0.0)
            tl.store(dy_out + at, dx, mask=inside)
    tl.store(dgain + program * H + cols, total)


@triton.jit
def feed_forward_forward(
    x, wi, wo, seeds, site, threshold, scale, hidden, y, M,
    H: tl.constexpr, F: tl.constexpr, BM: tl.constexpr, BF: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    """``hidden = keep * relu(x wi')`` (kept for the way back, not scaled) and ``y = scale * hidden wo'``."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    cols = tl.arange(0, H)
    inside = (rows < M)[:, None]
    tile = tl.load(x + rows[:, None] * H + cols[None, :], mask=inside, other=0.0)
    total = tl.zeros((BM, H), tl.float32)
    for first in range(0, F, BF):
        f = first + tl.arange(0, BF)
        w = tl.load(wi + f[:, None] * H + cols[None, :])
        a = tl.dot(tile, tl.trans(w), input_precision="ieee")
        a = tl.maximum(a, 0.0)
        at = rows[:, None] * F + f[None, :]
        if DROP:
            a = tl.where(keep(seeds, site, at, threshold), a, 0.0)
        a = a.to(tile.dtype)
        tl.store(hidden + at, a, mask=inside)
        w = tl.load(wo + cols[:, None] * F + f[None, :])
        total = tl.dot(a, tl.trans(w), total, input_precision="ieee")
    tl.store(y + rows[:, None] * H + cols[None, :], total * scale, mask=inside)


@triton.jit
def feed_forward_backward(
    dy, hidden, wi, wo, scale, d_hidden, dx, M,
    H: tl.constexpr, F: tl.constexpr, BM: tl.constexpr, BF: tl.constexpr,
):  # fmt: skip
    """``d_hidden = scale * dy wo`` where hidden is not 0, and ``dx = d_hidden wi``."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    cols = tl.arange(0, H)
    inside = (rows < M)[:, None]
    tile = tl.load(dy + rows[:, None] * H + cols[None, :], mask=inside, other=0.0)
    total = tl.zeros((BM, H), tl.float32)
    for first in range(0, F, BF):
        f = first + tl.arange(0, BF)
        at = rows[:, None] * F + f[None, :]
        w = tl.load(wo + cols[:, None] * F + f[None, :])
        d = tl.dot(tile, w, input_precision="ieee") * scale
        d = tl.where(tl.load(hidden + at, mask=inside, other=0.0) > 0, d, 0.0).to(tile.dtype)
        tl.store(d_hidden + at, d, mask=inside)
        w = tl.load(wi + f[:, None] * H + cols[None, :])
        total = tl.dot(d, w, total, input_precision="ieee")
    tl.store(dx + rows[:, None] * H + cols[None, :], total, mask=inside)


@triton.jit
def _weights(q, k, bias, segment, head, i, C: tl.constexpr):
    """Attention weights ``(C, C)`` of one head in one row: float32, each token within its own segment."""
    s = tl.dot(q, tl.trans(k), input_precision="ieee")
    s += tl.load(bias + head * C * C + i[:, None] * C + i[None, :])
    s = tl.where(segment[:, None] == segment[None, :], s, -1e30)
    e = tl.exp(s - tl.max(s, 1)[:, None])
    return e / tl.sum(e, 1)[:, None]


@triton.jit
def rows_attention_forward(
    qkv, bias, segments, seeds, site, threshold, scale, out, M, step,
    HEADS: tl.constexpr, D: tl.constexpr, C: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    """One row and head a program: ``(M, 3 h d)`` to ``(M, h d)``; a row holds `step` of at most C tokens."""
    row, head = tl.program_id(0), tl.program_id(1)
    i, d = tl.arange(0, C), tl.arange(0, D)
    token = row * step + i
    inside = (i < step) & (token < M)
    at = token[:, None] * (3 * HEADS * D) + head * D + d[None, :]
    q = tl.load(qkv + at, mask=inside[:, None], other=0.0)
    k = tl.load(qkv + HEADS * D + at, mask=inside[:, None], other=0.0)
    v = tl.load(qkv + 2 * HEADS * D + at, mask=inside[:, None], other=0.0)
    segment = tl.load(segments + token, mask=inside, other=-2)
    w = _weights(q, k, bias, segment, head, i, C)
    if DROP:
        place = ((row * HEADS + head) * C + i[:, None]) * C + i[None, :]
        w = tl.where(keep(seeds, site, place, threshold), w * scale, 0.0)
    o = tl.dot(w.to(v.dtype), v, input_precision="ieee")
    tl.store(out + token[:, None] * (HEADS * D) + head * D + d[None, :], o, mask=inside[:, None])


@triton.jit
def rows_attention_backward(
    qkv, bias, segments, d_out, seeds, site, threshold, scale, d_qkv, d_bias, M, step, rows,
    HEADS: tl.constexpr, D: tl.constexpr, C: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    """Gradients of queries, keys and values; that of the bias as one partial sum ``(h, C, C)`` a program."""
    program, head = tl.program_id(0), tl.program_id(1)
    i, d = tl.arange(0, C), tl.arange(0, D)
    total = tl.zeros((C, C), tl.float32)
    for row in range(program, rows, tl.num_programs(0)):
        token = row * step + i
        inside = (i < step) & (token < M)
        at = token[:, None] * (3 * HEADS * D) + head * D + d[None, :]
        q = tl.load(qkv + at, mask=inside[:, None], other=0.0)
        k = tl.load(qkv + HEADS * D + at, mask=inside[:, None], other=0.0)
        v = tl.load(qkv + 2 * HEADS * D + at, mask=inside[:, None], other=0.0)
        g = tl.load(
            d_out + token[:, None] * (HEADS * D) + head * D + d[None, :], mask=inside[:, None], other=0.0
        )
        segment = tl.load(segments + token, mask=inside, other=-2)
        w = _weights(q, k, bias, segment, head, i, C)
        dw = tl.dot(g, tl.trans(v), input_precision="ieee")
        dropped = w
        if DROP:
            place = ((row * HEADS + head) * C + i[:, None]) * C + i[None, :]
            kept = keep(seeds, site, place, threshold)
            dropped = tl.where(kept, w * scale, 0.0)
            dw = tl.where(kept, dw * scale, 0.0)
        dv = tl.dot(tl.trans(dropped.to(v.dtype)), g, input_precision="ieee")
        tl.store(d_qkv + 2 * HEADS * D + at, dv, mask=inside[:, None])
        ds = w * (dw - tl.sum(dw * w, 1)[:, None])
        total += ds
        ds = ds.to(q.dtype)
        tl.store(d_qkv + at, tl.dot(ds, k, input_precision="ieee"), mask=inside[:, None])
        dk = tl.dot(tl.trans(ds), q, input_precision="ieee")
        tl.store(d_qkv + HEADS * D + at, dk, mask=inside[:, None])
    tl.store(d_bias + ((program * HEADS + head) * C + i[:, None]) * C + i[None, :], total)


@triton.jit
def _cross_weights(q, e, length, t):
    s = tl.dot(q, tl.trans(e), input_precision="ieee")
    s = tl.where((t < length)[None, :], s, -1e30)
    w = tl.exp(s - tl.max(s, 1)[:, None])
    return w / tl.sum(w, 1)[:, None]


@triton.jit
def cross_attention_forward(
    queries, memory, starts, lengths, seeds, site, threshold, scale, out,
    H: tl.constexpr, Q: tl.constexpr, BQ: tl.constexpr, C: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    """One example a program: its queries ``(Q, H)`` against its tokens ``(T, H)``, keys and values in one."""
    example = tl.program_id(0)
    j, t, c = tl.arange(0, BQ), tl.arange(0, C), tl.arange(0, H)
    length = tl.load(lengths + example)
    own = (tl.load(starts + example) + t)[:, None] * H + c[None, :]
    e = tl.load(memory + own, mask=(t < length)[:, None], other=0.0)
    at = (example * Q + j)[:, None] * H + c[None, :]
    asked = (j < Q)[:, None]
    q = tl.load(queries + at, mask=asked, other=0.0)
    w = _cross_weights(q, e, length, t)
    if DROP:
        place = (example * Q + j)[:, None] * C + t[None, :]
        w = tl.where(keep(seeds, site, place, threshold), w * scale, 0.0)
    tl.store(out + at, tl.dot(w.to(e.dtype), e, input_precision="ieee"), mask=asked)


@triton.jit
def cross_attention_backward(
    queries, memory, starts, lengths, d_out, seeds, site, threshold, scale, d_queries, d_memory,
    H: tl.constexpr, Q: tl.constexpr, BQ: tl.constexpr, C: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    """Gradients of an example's queries and tokens; tokens of no example are not written."""
    example = tl.program_id(0)
    j, t, c = tl.arange(0, BQ), tl.arange(0, C), tl.arange(0, H)
    length = tl.load(lengths + example)
    own = (tl.load(starts + example) + t)[:, None] * H + c[None, :]
    there = (t < length)[:, None]
    e = tl.load(memory + own, mask=there, other=0.0)
    at = (example * Q + j)[:, None] * H + c[None, :]
    asked = (j < Q)[:, None]
    q = tl.load(queries + at, mask=asked, other=0.0)
    g = tl.load(d_out + at, mask=asked, other=0.0)
    w = _cross_weights(q, e, length, t)
    dw = tl.dot(g, tl.trans(e), input_precision="ieee")
    dropped = w
    if DROP:
        place = (example * Q + j)[:, None] * C + t[None, :]
        kept = keep(seeds, site, place, threshold)
        dropped = tl.where(kept, w * scale, 0.0)
        dw = tl.where(kept, dw * scale, 0.0)
    ds = (w * (dw - tl.sum(dw * w, 1)[:, None])).to(q.dtype)
    tl.store(d_queries + at, tl.dot(ds, e, input_precision="ieee"), mask=asked)
    de = tl.dot(tl.trans(ds), q, input_precision="ieee")
    de = tl.dot(tl.trans(dropped.to(g.dtype)), g, de, input_precision="ieee")
    tl.store(d_memory + own, de, mask=there)


@triton.jit
def embed_forward(
    table, tokens, seeds, site, threshold, scale, out, M,
    H: tl.constexpr, BM: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    """Rows of the table, dropped out."""
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    cols = tl.arange(0, H)
    inside = rows < M
    token = tl.load(tokens + rows, mask=inside, other=0)
    v = tl.load(table + token[:, None] * H + cols[None, :], mask=inside[:, None], other=0.0).to(tl.float32)
    at = rows[:, None] * H + cols[None, :]
    if DROP:
        v = tl.where(keep(seeds, site, at, threshold), v * scale, 0.0)
    tl.store(out + at, v, mask=inside[:, None])


@triton.jit
def embed_backward(
    d_out, tokens, seeds, site, threshold, scale, d_table, M, V,
    H: tl.constexpr, BV: tl.constexpr, BM: tl.constexpr, BF16: tl.constexpr, DROP: tl.constexpr,
):  # fmt: skip
    """Sums of the gradients of each token: a product with one-hot rows, in a fixed order.

    Program (v, s) adds the chunks s, s + S, .. of tokens for BV rows of the table into its partial sum.
    """
    v = tl.program_id(0) * BV + tl.arange(0, BV)
    part, parts = tl.program_id(1), tl.num_programs(1)
    cols = tl.arange(0, H)
    total = tl.zeros((BV, H), tl.float32)
    for first in range(part * BM, M, parts * BM):
        rows = first + tl.arange(0, BM)
        inside = rows < M
        at = rows[:, None] * H + cols[None, :]
        token = tl.load(tokens + rows, mask=inside, other=-1)
        g = tl.load(d_out + at, mask=inside[:, None], other=0.0).to(tl.float32)
        if DROP:
            g = tl.where(keep(seeds, site, at, threshold), g * scale, 0.0)
        hot = token[None, :] == v[:, None]
        if BF16:
            total = tl.dot(hot.to(tl.bfloat16), g.to(tl.bfloat16), total)
        else:
            total = tl.dot(hot.to(tl.float32), g, total, input_precision="ieee")
    tl.store(d_table + (part * V + v)[:, None] * H + cols[None, :], total, mask=(v < V)[:, None])


@triton.jit
def cross_entropy_forward(logits, labels, losses, d_logits, V, IGNORE: tl.constexpr, BV: tl.constexpr):
    """Loss of each row and the gradient of its logits; 0 where the label is ignored."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BV)
    label = tl.load(labels + row)
    x = tl.load(logits + row * V + c, mask=c < V, other=float("-inf")).to(tl.float32)
    top = tl.max(x, 0)
    e = tl.exp(x - top)
    total = tl.sum(e, 0)
    counted = label != IGNORE
    at_label = tl.sum(tl.where(c == label, x, 0.0), 0)
    tl.store(losses + row, tl.where(counted, tl.log(total) + top - at_label, 0.0))
    d = tl.where(counted, e / total - (c == label).to(tl.float32), 0.0)
    tl.store(d_logits + row * V + c, d, mask=c < V)
