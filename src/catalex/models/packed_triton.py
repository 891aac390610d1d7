"""The operations of the packed T5 on the kernels of `packed_kernels`: one autograd function each."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from catalex.models.packed_rows import Rows
from catalex.models.t5 import IGNORE, T5Options

SITES = 256
"""Dropout sites for which a pass draws seeds, in one kernel; a model of 4 + 4 layers has about 50."""

STEPS = 2**24
"""Dropout rates are rounded to 1/STEPS."""

PROGRAMS = 264
"""Programs that share a sum over tokens: two for each multiprocessor of an H100."""

WIDEST = 16384
"""Longest row of logits that one program holds in registers."""


@cache
def available() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def runs(options: T5Options, capacity: int, device: torch.device) -> bool:
    """Whether the kernels can run there: Triton is installed, and they are made for device and sizes.

    Older devices than those of compute capability 9 (H100) have less shared memory than tiles may take.
    """
    if device.type != "cuda" or not available() or not suits(options, capacity):
        return False
    return torch.cuda.get_device_capability(device) >= (9, 0)


def suits(options: T5Options, capacity: int) -> bool:
    """Whether the kernels are made for these sizes: tiles are powers of two that fit on the chip, and a pass
    has no more dropout sites than `SITES` (6, and 15 a pair of layers)."""
    two = all(n & (n - 1) == 0 for n in (options.hidden, options.head_width))
    return (
        two
        and 16 <= options.hidden <= 256
        and 16 <= options.head_width <= 128
        and options.feed_forward % 64 == 0
        and 6 + 15 * options.layers <= SITES
        and capacity <= 128
    )


class Dropout:
    """Seeds of all dropout sites of one pass, drawn once on the device from torch's generator."""

    def __init__(self, rate: float, device: torch.device) -> None:
        self.on = rate > 0
        self.threshold = round(rate * STEPS)
        self.scale = STEPS / (STEPS - self.threshold)
        self.seeds = torch.randint(-(2**31), 2**31 - 1, (SITES, 2), dtype=torch.int32, device=device)
        self._next = 0

    def site(self, count: int = 1) -> Site:
        """The next site, with room for `count`."""
        self._next += count
        assert self._next <= SITES, "more dropout sites than seeds"
        return Site(self.seeds, self._next - count, self.threshold, self.scale, self.on)


class Site:
    """One place in the network that drops out."""

    def __init__(self, seeds: Tensor, number: int, threshold: int, scale: float, on: bool) -> None:
        self.seeds, self.number, self.threshold, self.on = seeds, number, threshold, on
        self.scale = scale if on else 1.0

    @property
    def arguments(self) -> tuple[Tensor, int, int, float]:
        """What a kernel wants to know of it."""
        return self.seeds, self.number, self.threshold, self.scale


def kept(seeds: Tensor, site: int, places: Tensor, threshold: int) -> Tensor:
    """Which places a site keeps, in plain torch: the hash of `packed_kernels.keep`, for tests.

    It is a multiplicative hash of 32 bits with two seeds (the constants are those of the public-domain
    `lowbias32`); its upper 24 bits are compared with the threshold.
    """
    low = 2**32 - 1
    a, b = (int(seed) & low for seed in seeds[site])
    x = (places.long() & low) ^ a
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & low
    x = (((x ^ (x >> 15)) + b) & low) * 0x846CA68B & low
    return ((x ^ (x >> 16)) >> 8) >= threshold


@dataclass(frozen=True)
class Summed:
    """A weight whose gradient is a sum of partial sums, all added at once at the end (`_Shares`).

    Attributes:
        weight: As the network uses it.
        partial: ``(PROGRAMS, ..)`` where the programs of its one user put their sums.
    """

    weight: Tensor
    partial: Tensor


class _Shares(torch.autograd.Function):
    """One view of a weight for each of its users, or of several weights; one sum for all partial gradients.

    A user returns any tensor of the weight's shape as its gradient and leaves the true one in the buffer:
    otherwise every use would launch a sum of its own, some fifty a step.
    """

    @staticmethod
    def forward(ctx: Any, buffer: Tensor, users: int, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.buffer, ctx.users = buffer, users
        return tuple(weight.view_as(weight) for weight in weights for _ in range(users))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        per_weight = ctx.buffer.unflatten(0, (-1, ctx.users)).sum((1, 2))
        return (None, None, *per_weight.unbind(0))


def _shared(weights: list[Tensor], users: int, programs: int) -> list[Summed]:
    """`weights` of one shape, each for so many users."""
    shape = (len(weights) * users, programs, *weights[0].shape)
    buffer = torch.empty(shape, dtype=torch.float32, device=weights[0].device)
    views = _call(_Shares, buffer, users, *weights)
    return [Summed(view, partial) for view, partial in zip(views, buffer.unbind(0), strict=True)]


def _kernels() -> Any:
    from catalex.models import packed_kernels

    return packed_kernels


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor | None,
        gain: Tensor,
        partial: Tensor,
        site: Site,
        dtype: torch.dtype,
        last: bool,
    ) -> tuple[Tensor, Tensor]:
        rows, width = x.shape
        out = torch.empty_like(x) if y is not None else x
        n = torch.empty(rows, width, dtype=dtype, device=x.device)
        block = max(1, min(16, 4096 // width))
        if rows:
            _kernels().add_norm_forward[(-(-rows // block),)](
                x, y, gain, *site.arguments, out, n, rows,
                H=width, BM=block, ADD=y is not None, DROP=site.on, DROP_NORM=site.on and last, num_warps=4,
            )  # fmt: skip
        ctx.site, ctx.last, ctx.block, ctx.add = site, last, block, y is not None
        ctx.dtype, ctx.partial = dtype, partial
        ctx.save_for_backward(out, gain)
        ctx.set_materialize_grads(False)
        return (x.view_as(x) if y is None else out), n

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        d_x, d_n = gradients
        x, gain = ctx.saved_tensors
        if d_n is None:
            d_n = torch.zeros(x.shape, dtype=ctx.dtype, device=x.device)
        rows, width = x.shape
        tiles = -(-rows // ctx.block)
        dx = torch.empty_like(x)
        dy = torch.empty(x.shape, dtype=ctx.dtype, device=x.device) if ctx.add else None
        _kernels().add_norm_backward[(len(ctx.partial),)](
            x, d_x, d_n.contiguous(), gain, *ctx.site.arguments, dx, dy, ctx.partial, rows, tiles,
            H=width, BM=ctx.block, ADD=ctx.add, RESIDUAL=d_x is not None,
            DROP=ctx.site.on, DROP_NORM=ctx.site.on and ctx.last, num_warps=4,
        )  # fmt: skip
        return dx, dy, ctx.partial[0], None, None, None, None


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, wi: Tensor, wo: Tensor, site: Site) -> Tensor:
        rows, width = x.shape
        inner = wi.shape[0]
        hidden = torch.empty(rows, inner, dtype=x.dtype, device=x.device)
        y = torch.empty_like(x)
        chosen = tile(rows, inner)
        _kernels().feed_forward_forward[(-(-rows // chosen["BM"]),)](
            x, wi, wo, *site.arguments, hidden, y, rows,
            H=width, F=inner, DROP=site.on, **chosen,
        )  # fmt: skip
        ctx.scale = site.scale
        ctx.save_for_backward(x, wi, wo, hidden)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, wi, wo, hidden = ctx.saved_tensors
        g = gradients[0].contiguous()
        rows, width = x.shape
        d_hidden, dx = torch.empty_like(hidden), torch.empty_like(x)
        chosen = tile(rows, wi.shape[0])
        _kernels().feed_forward_backward[(-(-rows // chosen["BM"]),)](
            g, hidden, wi, wo, ctx.scale, d_hidden, dx, rows,
            H=width, F=wi.shape[0], **chosen,
        )  # fmt: skip
        d_wo = torch.addmm(wo, g.t(), hidden, beta=0, alpha=ctx.scale)
        return dx, d_hidden.t() @ x, d_wo, None


def tile(tokens: int, hidden: int) -> dict[str, int]:
    """Tile of the feed-forward kernels: tokens and hidden units, warps and loads in flight.

    Small batches need many small programs to fill the chip, large ones few weight reads.
    """
    rows, inner, warps, stages = (64, 32, 4, 3)
    if tokens < 64 * PROGRAMS // 2:
        rows, inner, warps, stages = (32, 64, 4, 2)
    if tokens < 32 * PROGRAMS // 2:
        rows, inner, warps, stages = (16, 128, 4, 2)
    return {"BM": rows, "BF": math.gcd(inner, hidden), "num_warps": warps, "num_stages": stages}


class _RowsAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, bias: Tensor, partial: Tensor, layout: Rows, heads: int, site: Site
    ) -> Tensor:
        tokens, width = len(qkv), qkv.shape[1] // (3 * heads)
        out = torch.empty(tokens, heads * width, dtype=qkv.dtype, device=qkv.device)
        warps = 4 if layout.capacity <= 64 else 8
        _kernels().rows_attention_forward[(layout.count(tokens), heads)](
            qkv, bias, layout.segments, *site.arguments, out, tokens, layout.step,
            HEADS=heads, D=width, C=layout.capacity, DROP=site.on, num_warps=warps,
        )  # fmt: skip
        ctx.layout, ctx.heads, ctx.site, ctx.warps = layout, heads, site, warps
        ctx.partial = partial
        ctx.save_for_backward(qkv, bias)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        qkv, bias = ctx.saved_tensors
        layout, heads = ctx.layout, ctx.heads
        tokens, width = len(qkv), qkv.shape[1] // (3 * heads)
        rows, capacity = layout.count(tokens), layout.capacity
        d_qkv = torch.empty_like(qkv)
        _kernels().rows_attention_backward[(len(ctx.partial), heads)](
            qkv, bias, layout.segments, gradients[0].contiguous(), *ctx.site.arguments, d_qkv, ctx.partial,
            tokens, layout.step, rows,
            HEADS=heads, D=width, C=capacity, DROP=ctx.site.on, num_warps=ctx.warps, num_stages=1,
        )  # fmt: skip
        return d_qkv, ctx.partial[0], None, None, None, None


class _Cross(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, memory: Tensor, layout: Rows, site: Site) -> Tensor:
        examples, width = len(layout.starts), memory.shape[1]
        asked = queries.shape[:2].numel() // examples
        ctx.sizes = {
            "H": width,
            "Q": asked,
            "BQ": max(16, 1 << (asked - 1).bit_length()),
            "C": layout.capacity,
        }
        queries = queries.contiguous()
        out = torch.empty_like(queries)
        _kernels().cross_attention_forward[(examples,)](
            queries, memory, layout.starts, layout.lengths, *site.arguments, out,
            **ctx.sizes, DROP=site.on, num_warps=4,
        )  # fmt: skip
        ctx.layout, ctx.site = layout, site
        ctx.save_for_backward(queries, memory)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        queries, memory = ctx.saved_tensors
        d_queries, d_memory = torch.empty_like(queries), torch.zeros_like(memory)
        _kernels().cross_attention_backward[(len(ctx.layout.starts),)](
            queries, memory, ctx.layout.starts, ctx.layout.lengths, gradients[0].contiguous(),
            *ctx.site.arguments, d_queries, d_memory, **ctx.sizes, DROP=ctx.site.on, num_warps=4,
        )  # fmt: skip
        return d_queries, d_memory, None, None


class _Embed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, table: Tensor, tokens: Tensor, site: Site, residual: torch.dtype, product: torch.dtype
    ) -> Tensor:
        rows, width = len(tokens), table.shape[1]
        out = torch.empty(rows, width, dtype=residual, device=table.device)
        _kernels().embed_forward[(-(-rows // 16),)](
            table, tokens, *site.arguments, out, rows, H=width, BM=16, DROP=site.on, num_warps=4
        )
        ctx.site, ctx.size, ctx.product = site, table.shape, product
        ctx.save_for_backward(tokens)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (tokens,) = ctx.saved_tensors
        vocabulary, width = ctx.size
        block, chunk = 64, 64
        chunks = -(-len(tokens) // chunk)
        parts = max(1, min(chunks // 4, PROGRAMS // -(-vocabulary // block), 64))
        partial = torch.empty(parts, vocabulary, width, dtype=torch.float32, device=tokens.device)
        _kernels().embed_backward[(-(-vocabulary // block), parts)](
            gradients[0].contiguous(), tokens, *ctx.site.arguments, partial, len(tokens), vocabulary,
            H=width, BV=block, BM=chunk, BF16=ctx.product == torch.bfloat16,
            DROP=ctx.site.on, num_warps=8, num_stages=2,
        )  # fmt: skip
        return partial.sum(0), None, None, None, None


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        rows, vocabulary = logits.shape
        losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
        d_logits = torch.empty_like(logits)
        _kernels().cross_entropy_forward[(rows,)](
            logits, labels, losses, d_logits, vocabulary,
            IGNORE=IGNORE, BV=1 << (vocabulary - 1).bit_length(), num_warps=4,
        )  # fmt: skip
        ctx.save_for_backward(d_logits)
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (d_logits,) = ctx.saved_tensors
        return (d_logits * gradients[0]).to(d_logits.dtype), None


class TritonOps:
    """`catalex.models.t5_packed.Ops` in Triton, over the layout `Rows`.

    Args:
        residual: Precision of the residual stream between the blocks.
    """

    def __init__(
        self,
        rate: float,
        heads: int,
        device: torch.device,
        dtype: torch.dtype,
        residual: torch.dtype = torch.float32,
    ) -> None:
        self.dropout = Dropout(rate, device)
        self.heads, self.dtype, self.residual = heads, dtype, residual

    def embed(self, table: Tensor, tokens: Tensor) -> Tensor:
        found: Tensor = _call(_Embed, table, tokens, self.dropout.site(), self.residual, self.dtype)
        return found

    def gains(self, gains: list[Tensor]) -> list[Summed]:
        return _shared(gains, 1, 2 * PROGRAMS)

    def biases(self, bias: Tensor, users: int) -> list[Summed]:
        return _shared([bias.contiguous()], users, max(1, PROGRAMS // self.heads))

    def add_norm(
        self, x: Tensor, y: Tensor | None, gain: Summed, *, last: bool = False
    ) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = _call(
            _AddNorm, x, y, gain.weight, gain.partial, self.dropout.site(2), self.dtype, last
        )
        return found

    def feed_forward(self, x: Tensor, wi: Tensor, wo: Tensor) -> Tensor:
        found: Tensor = _call(_FeedForward, x, wi, wo, self.dropout.site())
        return found

    def self_attention(self, qkv: Tensor, bias: Summed, layout: Rows) -> Tensor:
        found: Tensor = _call(
            _RowsAttention, qkv, bias.weight, bias.partial, layout, self.heads, self.dropout.site()
        )
        return found

    def cross_attention(self, queries: Tensor, memory: Tensor, layout: Rows) -> Tensor:
        found: Tensor = _call(_Cross, queries, memory, layout, self.dropout.site())
        return found

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        if logits.shape[1] > WIDEST:
            return torch.nn.functional.cross_entropy(
                logits.float(), labels, ignore_index=IGNORE, reduction="sum"
            )
        found: Tensor = _call(_CrossEntropy, logits, labels)
        return found


def _call(function: Any, *arguments: Any) -> Any:
    return function.apply(*arguments)
