"""Co-occurring alignment: an item and its positive shall be alike at every level (2504.04405, eq. 11).

InfoNCE with in-batch negatives, from the item to its positive only, as in the authors' code. Two things the
code lacks: the same item met twice in a batch is no negative, and shares of unequal length are weighed
exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from catalex.training.distributed import gather_with_gradient, global_mean, process_index, row_counts


def alignment_loss(
    hidden: Tensor, positive: Tensor, rows: Tensor, positive_rows: Tensor, *, temperature: float = 0.1
) -> Tensor:
    """Mean over the L levels and the items of the joined batch; cosines and softmax in float32.

    Item i of this process meets the positives of all processes. Where the batch has no negative for it, which
    is always so with a single item, its term is 0; without any item the loss is 0. Shapes: B items of this
    process, L levels, d the width of the aligned vectors.

    Args:
        hidden: ``(B, L, d)`` representations of the items.
        positive: ``(B, L, d)`` representations of their positives; gradient flows into both.
        rows: ``(B,)`` integers that name the items.
        positive_rows: ``(B,)`` the same for the positives. Equal numbers mean the same item: give catalogue
            entries that are known duplicates of one another one number, and they are never negatives either.
        temperature: tau, which divides the cosines; 0.1 in the authors' code.
    """
    counts = row_counts(rows)
    first = sum(counts[: process_index()])  # column of this process's first own positive
    with torch.autocast(hidden.device.type, enabled=False):
        queries = functional.normalize(hidden.float(), dim=-1)
        keys = gather_with_gradient(functional.normalize(positive.float(), dim=-1), counts)
        logits = torch.einsum("ild,jld->lij", queries, keys) / temperature
        false = false_negatives(rows, positive_rows, gather_with_gradient(positive_rows, counts), first)
        logits = logits.masked_fill(false, -torch.inf)
        own = logits.diagonal(offset=first, dim1=1, dim2=2)
        terms = logits.logsumexp(dim=-1) - own
        return global_mean(terms.mean(dim=0).sum(), len(rows))


def false_negatives(rows: Tensor, positive_rows: Tensor, columns: Tensor, first: int = 0) -> Tensor:
    """``(B, B_total)`` columns that are not to be pushed away from an item: its positive again, or itself.

    Args:
        rows: ``(B,)`` the items.
        positive_rows: ``(B,)`` their positives.
        columns: ``(B_total,)`` the positives of the joined batch.
        first: Where this process's positives begin: column ``first + i`` is item i's own, which stays.
    """
    same = (columns == positive_rows[:, None]) | (columns == rows[:, None])
    own = torch.arange(len(rows), device=rows.device)[:, None] + first
    return same & (torch.arange(len(columns), device=rows.device) != own)
