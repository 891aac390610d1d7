"""The search as a fixed sequence of operations on the device: what a CUDA graph records.

The same program runs over two sets of operations: `Plain` (torch; any device, the exact reference and the
float32 path) and `Fused` (Triton kernels). No operation waits for the device, and every size follows from the
sizes of the arguments, so the program can be captured.

Letters: B users, T tokens of a history, H model width, W beams of a level, L levels, R = B x W rows, k
results. Rows of a user are consecutive. Beams of an inner level are in the order of their nodes: among
equal scores the first candidates are then those of the smallest prefixes, which is the order that ties
are broken in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from catalex.decoding.engine.index import StaticIndex, StaticLevel
from catalex.decoding.engine.masks import Masks
from catalex.models.t5 import PAD


@dataclass(frozen=True)
class Beams:
    """Kept prefixes, each ``(B, W)``.

    Attributes:
        name: int32 node of this level, or at the last level the item; -1 where there is none.
        score: float32 log-probability; -inf where there is none.
        origin: int32 beam of the level above.
    """

    name: Tensor
    score: Tensor
    origin: Tensor


class Operations(Protocol):
    """What the program is written in.

    `x` are float32 residuals of R rows in whatever form the operations hand to each other; they may be
    changed in place.
    """

    def root(self, users: int) -> Any:
        """Residuals of the first position."""

    def encode(self, tokens: Tensor, lengths: Tensor) -> Any:
        """What cross-attention reads, of ``tokens (B, T)`` with ``lengths (B,)`` int32."""

    def cache(self, rows: int) -> Any:
        """Room for the keys and values of all positions but the last."""

    def layer(self, x: Any, number: int, position: int, ancestors: Tensor, cache: Any, memory: Any) -> Any:
        """One decoder layer; ``ancestors (L - 1, R)`` int32 are the rows of the earlier positions."""

    def head(self, x: Any, level: StaticLevel) -> tuple[Tensor, Tensor]:
        """Logits ``(R, span)`` of the level's tokens, and log-sum-exp over the whole vocabulary.

        The latter is ``(R,)``, or ``(shares, R)`` of shares of the vocabulary.
        """

    def closed(self, index: StaticIndex, excluded: Tensor) -> Any:
        """What `close` needs to know of ``excluded (B, E)`` int64 items."""

    def close(self, logits: Tensor, beams: Beams, index: StaticIndex, depth: int, closed: Any) -> None:
        """Set to -inf the logits of the beams' children at a level whose items are all excluded."""

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
        """The `width` best children; with `items`, their items, in any order."""

    def advance(
        self, level: StaticLevel, beams: Beams, above: int, ancestors: Tensor, position: int
    ) -> tuple[Any, Tensor]:
        """Embeddings of the beams' last tokens, and the beams' ancestors.

        `above` and `ancestors` are the beams a user and the ancestors at `position`, a level above.
        """

    def rank(self, beams: Beams, k: int, doubt: Tensor) -> Tensor:
        """``(2, B, k)`` int32: items, and the bits of float32 scores; best first, then by item.

        A score is NaN where the root's log-sum-exp `doubt` is no number.
        """


@torch.no_grad()
def search(
    run: Operations,
    index: StaticIndex,
    layers: int,
    tokens: Tensor,
    widths: Sequence[int],
    k: int,
    masks: Masks | None = None,
    excluded: Tensor | None = None,
) -> Tensor:
    """The `k` best items of each of ``tokens (B, T)``, as `Operations.rank` writes them."""
    users = len(tokens)
    lengths = (tokens != PAD).sum(1, dtype=torch.int32).clamp_(min=1)
    memory = run.encode(tokens, lengths)
    closed = None if excluded is None else run.closed(index, excluded)
    root = torch.zeros(users, 1, dtype=torch.int32, device=tokens.device)
    beams = Beams(root, root.float(), root)
    x = run.root(users)
    cache = run.cache(users * max(widths))
    ancestors = torch.zeros(max(len(widths) - 1, 1), users, dtype=torch.int32, device=tokens.device)
    doubt = None
    for depth, (level, width) in enumerate(zip(index.levels, widths, strict=True)):
        for number in range(layers):
            x = run.layer(x, number, depth, ancestors, cache, memory)
        logits, log_sums = run.head(x, level)
        doubt = log_sums if doubt is None else doubt
        if closed is not None:
            run.close(logits, beams, index, depth, closed)
        mask = None if masks is None else (masks.levels[depth], masks.chosen)
        last = depth == len(widths) - 1
        above = beams.name.shape[1]
        beams = run.expand(level, beams, logits, log_sums, mask, width, index.items if last else None)
        if not last:
            x, ancestors = run.advance(level, beams, above, ancestors, depth)
    assert doubt is not None
    return run.rank(beams, k, doubt)
