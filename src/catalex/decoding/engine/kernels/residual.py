# mypy: ignore-errors
"""Residuals in parts, and their norm.

With few rows a kernel's work is split among programs, each of which writes its share of the sum to its own
part; the next kernel adds the parts up when it reads. So many programs work on one row, without atomics,
whose order would change the rounding from run to run.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def whole(x_ptr, places, inside, stride, PARTS: tl.constexpr):
    """The sum of the parts, each `stride` numbers long."""
    x = tl.load(x_ptr + places, inside, 0.0)
    for part in tl.static_range(1, PARTS):
        x += tl.load(x_ptr + part * stride + places, inside, 0.0)
    return x


@triton.jit
def normed(x, H: tl.constexpr, dtype: tl.constexpr):
    """Rows over their root mean square; the gains are in the next weights."""
    return (x * tl.rsqrt(tl.sum(x * x, 1) / H + 1e-6)[:, None]).to(dtype)


@triton.jit(do_not_specialize=["rows"])
def settle(
    x_ptr,  # (PARTS, R, H) float32
    out_ptr,  # (R, H) of the weights' type
    rows,
    H: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
):
    """The norm of the residuals."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    places = row[:, None] * H + tl.arange(0, H)[None, :]
    inside = (row < rows)[:, None]
    x = whole(x_ptr, places, inside, rows * H, PARTS)
    tl.store(out_ptr + places, normed(x, H, out_ptr.dtype.element_ty), inside)
