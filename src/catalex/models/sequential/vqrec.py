"""VQ-Rec: an item is the mean of the embeddings of its codes (Hou et al. 2023, arXiv 2210.12316).

The codes come from the item's text by product quantization, so the table of code embeddings, not the text
itself, is what histories of many domains share. On a new domain the codebooks are learned anew, and a
permutation says which new code takes the place of which old one (`Alignment`).

Shape letters: B batch, S items of a history, H model width, N items, M codes of an item, K codes of a slice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from catalex.models.sequential.base import Reduction
from catalex.models.sequential.content import ContrastiveModel, unit
from catalex.models.sequential.parts import initialise


class VQRecModel(ContrastiveModel):
    """Code embeddings, a causal transformer, cosines.

    The rotation and the codebooks that made the codes are kept beside the weights: with them items of another
    domain get codes of the same meaning (`catalex.quantize.opq.ProductQuantizer`).

    Args:
        codes: ``(N, M)`` codes of the items.
        size: K.
        quantizer: ``mean`` ``(D,)``, ``rotation`` ``(D, D)``, ``codebooks`` ``(M, K, d)``.
        length, hidden, layers, heads, inner, dropout, temperature: As in `ContentModel`.
        replaced: Probability that a code of a synthetic negative is random (.75 in the official settings).
    """

    own: ClassVar[tuple[str, ...]] = ("codes", "mean", "rotation", "codebooks")
    alike = 0.0  # VQ-Rec has the first task of UniSRec alone
    codes: Tensor

    def __init__(
        self,
        codes: Tensor,
        size: int,
        quantizer: Mapping[str, Tensor],
        length: int,
        hidden: int,
        layers: int,
        heads: int,
        inner: int,
        dropout: float,
        temperature: float,
        *,
        replaced: float,
    ) -> None:
        items, slices = codes.shape
        super().__init__(items, length, hidden, layers, heads, inner, dropout, temperature)
        self.size, self.replaced = size, replaced
        self.register_buffer("codes", F.pad(codes.long(), (0, 0, 0, 1)))
        for name, value in quantizer.items():
            self.register_buffer(name, value.clone())
        self.code_table = nn.Embedding(slices * size, hidden)
        initialise(self)
        self.aligned: Tensor | None = None
        """``(M K, H)`` what stands in place of the table while an `Alignment` is learned."""

    def vectors_of(self, items: Tensor) -> Tensor:
        """Mean of the items' code embeddings."""
        return self.mean_of(self.codes[items])

    def mean_of(self, codes: Tensor) -> Tensor:
        """``(.., H)`` mean of the embeddings of codes ``(.., M)``."""
        table = self.code_table.weight if self.aligned is None else self.aligned
        first = torch.arange(codes.shape[-1], device=codes.device) * self.size
        return F.embedding(codes + first, table).mean(-2)

    def synthetic(self, states: Tensor, targets: Tensor) -> Tensor:
        """Logits ``(B, 1)`` of one item for each target that does not exist: most of its codes are replaced
        by random ones (section 3.2.2)."""
        codes = self.codes[targets]
        other = torch.randint_like(codes, self.size)
        mixed = torch.where(torch.rand(codes.shape, device=codes.device) < self.replaced, other, codes)
        return (unit(states) * unit(self.mean_of(mixed))).sum(-1, keepdim=True) / self.temperature


class Alignment(nn.Module):
    """Learns for each slice which old code embedding each new code starts from (section 3.3).

    The logits get Gumbel noise and are made nearly doubly stochastic by Sinkhorn's iterations; each new code
    then takes the old embedding with the largest share, and the gradient is that of the shares
    (straight-through). In the official code the choice is rounded up, which has no gradient.

    Args:
        model: Whose code table holds the old embeddings; it is not changed.
        iterations: Of Sinkhorn (3 in the official settings).
        temperature: Of the logits (.7 in the official code).
    """

    def __init__(self, model: VQRecModel, iterations: int, temperature: float) -> None:
        super().__init__()
        slices, size = model.codes.shape[1], model.size
        self.iterations, self.temperature = iterations, temperature
        self.scores = nn.Parameter(torch.randn(slices, size, size))
        self.register_buffer("old", model.code_table.weight.detach().view(slices, size, -1).clone())
        self.old: Tensor

    def forward(
        self, model: VQRecModel, batch: Mapping[str, Tensor], reduction: Reduction = "mean"
    ) -> Tensor:
        """The loss of next items, with the table as aligned so far."""
        noise = -torch.empty_like(self.scores).exponential_().clamp(min=1e-20).log()
        shares = sinkhorn((self.scores + noise) / self.temperature, self.iterations)
        hard = F.one_hot(shares.argmax(2), shares.shape[2]).to(shares.dtype)
        chosen = hard + shares - shares.detach()
        model.aligned = (chosen @ self.old).flatten(0, 1)
        try:
            return model.loss(batch, reduction)
        finally:
            model.aligned = None

    @torch.no_grad()
    def table(self) -> Tensor:
        """``(M K, H)`` the old embeddings in the order of the new codes, each used exactly once."""
        order = permutation(sinkhorn(self.scores / self.temperature, self.iterations))
        return self.old.gather(1, order[..., None].expand_as(self.old)).flatten(0, 1)


def sinkhorn(logits: Tensor, iterations: int) -> Tensor:
    """``(M, K, K)`` with rows and columns that sum to nearly 1, columns last and exactly."""
    for _ in range(iterations):
        logits = logits - logits.logsumexp(2, keepdim=True)
        logits = logits - logits.logsumexp(1, keepdim=True)
    return logits.exp()


def permutation(shares: Tensor) -> Tensor:
    """``(M, K)`` for each row of ``(M, K, K)`` a column of its own: the largest share first, then the largest
    among the rows and columns that are left."""
    left, slices = shares.clone(), torch.arange(len(shares), device=shares.device)
    found = torch.zeros(shares.shape[:2], dtype=torch.int64, device=shares.device)
    for _ in range(shares.shape[1]):
        best = left.flatten(1).argmax(1)
        rows, columns = best // shares.shape[2], best % shares.shape[2]
        found[slices, rows] = columns
        left[slices, rows] = -1
        left[slices, :, columns] = -1
    return found
