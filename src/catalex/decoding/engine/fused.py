"""The operations as Triton kernels. Letters as in `program` and `weights`.

Import it only where triton is installed. Sizes must be powers of two, as tiles are; `fits` says whether a
model's are. Residuals are ``(parts, R, H)``: see `kernels.residual`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from catalex.decoding.engine.index import StaticIndex, StaticLevel, power_of_two
from catalex.decoding.engine.kernels import attention, root, selection
from catalex.decoding.engine.kernels.feed_forward import feed_forward
from catalex.decoding.engine.kernels.head import head
from catalex.decoding.engine.kernels.residual import settle
from catalex.decoding.engine.plain import Plain, encoder_bias, padding_bias
from catalex.decoding.engine.program import Beams
from catalex.decoding.engine.weights import Weights
from catalex.models.t5 import MAX_DISTANCE, PAD, T5Options

LONGEST = 128
"""Tokens of a history whose self-attention one program can hold; longer ones take torch's."""
CANDIDATES = 8192
"""Candidates that one program selects from."""
CHUNK = 64
"""Columns of the feed-forward block, and of the vocabulary, at a time."""
SMALLEST = 128
"""Candidates of a program at least; Triton 3.6 fails to compile some tiles with fewer."""
MANY = 128
"""Excluded items from which on torch looks for closed nodes."""
PROCESSORS = 132
"""Of an H100."""
FULL = 200
"""Programs into which work is cut at most: more would mostly read each other's parts."""
TOGETHER = 64
"""Users from which on the first step is cut so that its weights are read for many users at once."""
CONFIG: dict[str, dict[str, Any]] = {}
"""Launch sizes by kernel that win over the usual ones, "self 2" at position 2 alone; for measuring."""


def fits(options: T5Options) -> bool:
    """Whether the kernels can run a model of these sizes: tiles of its weights have room on the chip."""
    o = options
    widths = (o.hidden, o.head_width)
    return all(16 <= width <= 128 and width == power_of_two(width) for width in widths) and (
        o.feed_forward % CHUNK == 0
    )


@dataclass(frozen=True)
class Memory:
    """``encoded (B T, H)`` normed, ``lengths (B,)`` int32, and T."""

    encoded: Tensor
    lengths: Tensor
    tokens: int


class Fused:
    """`Operations` by Triton kernels."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.options = o = weights.options
        self.precision = "ieee"
        self._plain = Plain(weights)
        square = [o.hidden, o.hidden]
        self._tiles = {
            name: _tiles(weights.decoder[name], square)
            for name in ("self_read", "self_write", "self_first", "cross_read", "cross_write")
        }
        self._feed_forward = {
            side: (_tiles(w["wi"], [o.hidden, CHUNK]), _tiles(w["wo"], [CHUNK, o.hidden]))
            for side, w in (("encoder", weights.encoder), ("decoder", weights.decoder))
        }
        self._head = _tiles(weights.head, [o.hidden, CHUNK])
        self._by_heads = [count for count in range(o.heads, 0, -1) if o.heads % count == 0]
        self._by_width = [count for count in (8, 4, 2, 1) if o.feed_forward % (count * CHUNK) == 0]

    # --- encoder --------------------------------------------------------------------------------------------

    def encode(self, tokens: Tensor, lengths: Tensor) -> Memory:
        w, (users, length) = self.weights, tokens.shape
        x = torch.index_select(w.table, 0, tokens.flatten()).unsqueeze(0)
        bias = None
        if length > LONGEST:
            bias = encoder_bias(w, length) + padding_bias(lengths, length)
        for number in range(self.options.layers):
            if bias is None:
                x = self.encoder_attention(x, number, lengths, length)
            else:
                wide = x.sum(0).view(users, length, -1)
                x = self._plain.encoder_attention(wide, number, bias).view(1, users * length, -1)
            x = self.feed_forward(x, "encoder", number)
        encoded = torch.empty(x.shape[1:], dtype=w.dtype, device=x.device)
        rows = len(encoded)
        settle[(-(-rows // 16),)](x, encoded, rows, H=x.shape[2], BLOCK=16, PARTS=len(x))
        return Memory(encoded, lengths, length)

    def encoder_attention(self, x: Tensor, number: int, lengths: Tensor, length: int) -> Tensor:
        w, o = self.weights, self.options
        block = max(power_of_two(length), 16)
        splits = _splits(len(lengths), self._by_heads)
        config = {"num_warps": 8 if block > 64 else 4, **CONFIG.get("encoder", {})}
        out = _out(x, splits)
        attention.encoder_attention[(len(lengths), splits)](
            x, out, w.encoder["qkv"][number], w.encoder["out"][number], w.encoder_bias, lengths, x.shape[1],
            length, H=o.hidden, HEADS=o.heads, D=o.head_width, BLOCK=block, FAR=MAX_DISTANCE,
            PARTS=len(x), SPLITS=splits, PRECISION=self.precision, **config,
        )  # fmt: skip
        return out

    def feed_forward(self, x: Tensor, side: str, number: int) -> Tensor:
        o, rows = self.options, x.shape[1]
        config = {"BLOCK": _block(rows), "STAGES": 3, "num_warps": 4, **CONFIG.get("feed_forward", {})}
        tiles = -(-rows // config["BLOCK"])
        splits = _splits(tiles, self._by_width)
        out = _out(x, splits)
        feed_forward[(tiles, splits)](
            x, out, *self._feed_forward[side], rows, number, H=o.hidden, F=o.feed_forward, CHUNK=CHUNK,
            PARTS=len(x), SPLITS=splits, PRECISION=self.precision, **config,
        )  # fmt: skip
        return out

    # --- decoder --------------------------------------------------------------------------------------------

    def root(self, users: int) -> Tensor:
        return self.weights.table[PAD].expand(1, users, -1).contiguous()

    def cache(self, rows: int) -> Tensor:
        """``(l, L - 1, R, H)`` normed residuals."""
        w, o = self.weights, self.options
        shape = (o.layers, max(w.positions - 1, 1), rows, o.hidden)
        return torch.empty(shape, dtype=w.dtype, device=w.device)

    def layer(
        self, x: Tensor, number: int, position: int, ancestors: Tensor, cache: Tensor, memory: Memory
    ) -> Tensor:
        x = self.self_attention(x, number, position, ancestors, cache)
        x = self.cross(x, number, memory)
        return self.feed_forward(x, "decoder", number)

    def self_attention(
        self, x: Tensor, number: int, position: int, ancestors: Tensor, cache: Tensor
    ) -> Tensor:
        w, o, rows = self.weights, self.options, x.shape[1]
        if position == 0:
            out = _out(x, 1)
            root.first_self[(-(-rows // 16),)](
                x, out, self._tiles["self_first"], cache[number], rows, number, H=o.hidden, BLOCK=16,
                PARTS=len(x), CACHED=w.positions > 1, PRECISION=self.precision,
            )  # fmt: skip
            return out
        # more than 32 rows, each with its ancestors, do not fit the registers
        config = {"BLOCK": min(_block(rows), 32), "STAGES": 2, "num_warps": 4}
        config |= CONFIG.get("self", {}) | CONFIG.get(f"self {position}", {})
        tiles = -(-rows // config["BLOCK"])
        splits = _splits(tiles, self._by_heads)
        out = _out(x, splits)
        attention.self_attention[(tiles, splits)](
            x, out, self._tiles["self_read"], self._tiles["self_write"], w.decoder_bias, cache[number],
            ancestors, rows, cache.stride(1), number, H=o.hidden, HEADS=o.heads, P=w.positions,
            POSITION=position, PARTS=len(x), SPLITS=splits, PRECISION=self.precision, **config,
        )  # fmt: skip
        return out

    def cross(self, x: Tensor, number: int, memory: Memory) -> Tensor:
        o, rows, users = self.options, x.shape[1], len(memory.lengths)
        beams = rows // users
        keys = min(max(power_of_two(memory.tokens), 16), 64 if memory.tokens <= 64 else 128)
        sizes = {"H": o.hidden, "HEADS": o.heads, "KEYS": keys, "TILES": -(-memory.tokens // keys)}
        read, write = self._tiles["cross_read"], self._tiles["cross_write"]
        if beams == 1 and users >= TOGETHER:
            return self._cross_of_roots(x, number, memory, sizes)
        block = min(max(power_of_two(beams), 16), _block(rows))
        config = {"BLOCK": block, "STAGES": 1, "num_warps": 4, **CONFIG.get("cross", {})}
        tiles = -(-beams // config["BLOCK"])
        splits = _splits(users * tiles, self._by_heads)
        out = _out(x, splits)
        attention.cross_attention[(users, tiles, splits)](
            x, out, memory.encoded, memory.lengths, read, write, rows, beams, memory.tokens, number,
            PARTS=len(x), SPLITS=splits, PRECISION=self.precision, **sizes, **config,
        )  # fmt: skip
        return out

    def _cross_of_roots(self, x: Tensor, number: int, memory: Memory, sizes: dict[str, int]) -> Tensor:
        o, rows = self.options, x.shape[1]
        tiles = -(-rows // 16)
        splits = _splits(tiles, self._by_heads)
        q = torch.empty(rows, o.heads, o.hidden, dtype=self.weights.dtype, device=x.device)
        common = {"H": o.hidden, "HEADS": o.heads, "BLOCK": 16, "PARTS": len(x), "PRECISION": self.precision}
        root.project[(tiles, o.heads)](x, q, self._tiles["cross_read"], rows, number, **common)
        root.attend[(rows,)](
            q, memory.encoded, memory.lengths, memory.tokens, ROWS=max(power_of_two(o.heads), 16),
            PRECISION=self.precision, **sizes,
        )  # fmt: skip
        out = _out(x, splits)
        root.collect[(tiles, splits)](
            x, out, q, self._tiles["cross_write"], rows, number, SPLITS=splits, **common
        )
        return out

    # --- selection ------------------------------------------------------------------------------------------

    def head(self, x: Tensor, level: StaticLevel) -> tuple[Tensor, Tensor]:
        w, rows = self.weights, x.shape[1]
        config = {"BLOCK": _block(rows), "STAGES": 3, "num_warps": 4, **CONFIG.get("head", {})}
        tiles = -(-rows // config["BLOCK"])
        pieces = w.head.shape[1] // CHUNK
        share = -(-pieces // _splits(tiles, [8, 4, 2, 1])) * CHUNK
        splits = -(-w.head.shape[1] // share)
        logits = torch.empty(rows, level.span, dtype=torch.float32, device=x.device)
        log_sums = torch.empty(splits, rows, dtype=torch.float32, device=x.device)
        head[(tiles, splits)](
            x, self._head, logits, log_sums, rows, w.vocabulary, level.low, level.span, H=x.shape[2],
            SHARE=share, CHUNK=CHUNK, PARTS=len(x), PRECISION=self.precision, **config,
        )  # fmt: skip
        return logits, log_sums

    def closed(self, index: StaticIndex, excluded: Tensor) -> Any:
        if excluded.shape[1] > MANY:
            return self._plain.closed(index, excluded)
        return excluded

    def close(self, logits: Tensor, beams: Beams, index: StaticIndex, depth: int, closed: Any) -> None:
        if isinstance(closed, list):
            self._plain.close(logits, beams, index, depth, closed)
            return
        users, width = beams.name.shape
        level = index.levels[depth]
        selection.close[(users,)](
            beams.name, closed, index.leaf_of, index.above, index.above_at, level.edges, level.tokens, logits,
            width, closed.shape[1], len(index.leaf_of), level.low, level.span,
            E=closed.shape[1], WIDTH=power_of_two(width), BEAMS=min(power_of_two(width), 32),
            DEPTH=depth, LEVELS=len(index.levels),
        )  # fmt: skip

    def expand(
        self,
        level: StaticLevel,
        beams: Beams,
        logits: Tensor,
        log_sums: Tensor,
        mask: tuple[Tensor, Tensor] | None,
        width: int,
        items: Tensor | None,
    ) -> Beams:
        users, above = beams.name.shape
        children = min(level.fan_out, CANDIDATES)
        parts = level.fan_out // children
        together = min(power_of_two(above), max(CANDIDATES // children, 1))
        children = max(children, SMALLEST // together)
        blocks = -(-above // together) * parts
        found = _beams((users, blocks, width), logits.device)
        opened, chosen = (level.tokens, level.tokens) if mask is None else mask
        config = {
            "num_warps": 8 if together * children > 2048 and users <= PROCESSORS else 4,
            **CONFIG.get("expand", {}),
        }
        selection.expand[(users, blocks)](
            beams.name, beams.score, logits, log_sums, level.starts, level.tokens,
            level.tokens if items is None else items, opened, chosen, found.name, found.score, found.origin,
            len(logits), above, level.low, level.span, opened.stride(0), width, WIDTH=power_of_two(width),
            BEAMS=together, CHILDREN=children, PARTS=parts, LOGS=log_sums.numel() // len(logits),
            MASKED=mask is not None, LAST=items is not None, **config,
        )  # fmt: skip
        candidates = blocks * width
        if blocks > 1:
            narrowed = _beams((users, 1, width), logits.device)
            selection.narrow[(users,)](
                found.name, found.score, found.origin, narrowed.name, narrowed.score, narrowed.origin,
                candidates, width, WIDTH=power_of_two(width), N=max(power_of_two(candidates), SMALLEST),
                LAST=items is not None, num_warps=8 if candidates > 2048 else 4,
            )  # fmt: skip
            found = narrowed
        return Beams(found.name[:, 0], found.score[:, 0], found.origin[:, 0])

    def advance(
        self, level: StaticLevel, beams: Beams, above: int, ancestors: Tensor, position: int
    ) -> tuple[Tensor, Tensor]:
        users, width = beams.name.shape
        rows, table = users * width, self.weights.table
        x = torch.empty(1, rows, table.shape[1], device=table.device)
        followed = ancestors.new_empty(len(ancestors), rows)
        selection.advance[(-(-rows // 16),)](
            beams.name, beams.origin, level.tokens, table, ancestors, x, followed, rows, width,
            ancestors.shape[1], above, H=table.shape[1], POSITION=position, BLOCK=16,
        )  # fmt: skip
        return x, followed

    def rank(self, beams: Beams, k: int, doubt: Tensor) -> Tensor:
        users, width = beams.name.shape
        found = torch.empty(2, users, k, dtype=torch.int32, device=beams.name.device)
        size = power_of_two(max(width, k, 16))
        selection.rank[(users,)](
            beams.name, beams.score, doubt, found[0], found[1].view(torch.float32), width, k, N=size,
            CHUNK=min(size, 32),
        )  # fmt: skip
        return found


def _tiles(matrices: Tensor, block: list[int]) -> Any:
    """A descriptor of matrices one under the other, which the copy engine reads in tiles."""
    return TensorDescriptor.from_tensor(matrices.view(-1, matrices.shape[-1]), block)


def _block(rows: int) -> int:
    """Rows of a program: the weights that it reads serve all of them, but few rows need many programs."""
    return 16 if rows <= 512 else (32 if rows <= 4096 else 64)


def _splits(tiles: int, choices: list[int]) -> int:
    """Into how many programs a tile's work is cut: as many of `choices` (descending) as fill the device."""
    return next((count for count in choices if tiles * count <= FULL), choices[-1])


def _out(x: Tensor, splits: int) -> Tensor:
    """Where a kernel writes: over its input when one program alone reads those rows."""
    return x[:1] if splits == 1 else x.new_empty(splits, *x.shape[1:])


def _beams(shape: tuple[int, int, int], device: torch.device) -> Beams:
    return Beams(
        torch.empty(shape, dtype=torch.int32, device=device),
        torch.empty(shape, dtype=torch.float32, device=device),
        torch.empty(shape, dtype=torch.int32, device=device),
    )
