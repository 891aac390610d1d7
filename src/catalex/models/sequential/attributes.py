"""Attributes of items (category words) as a table that can be indexed by batches of item ids."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from catalex.data.histories import Histories


class AttributeLists(nn.Module):
    """Attribute ids of N items, padded to the most that one item has. Moves with the model, is not saved.

    Args:
        attributes: Attribute ids 0.. of each item.
        count: A, number of different attributes; A itself stands for padding.
        further: Ids after the items that have no attributes: padding, mask.
        most: P at most: further attributes of an item are left out.
    """

    words: Tensor

    def __init__(self, attributes: Histories, count: int, further: int = 1, most: int = 32) -> None:
        super().__init__()
        self.count = count
        kept = attributes.latest(most)
        wide = max(int(kept.lengths.max(initial=0)), 1)
        words = torch.full((len(kept) + further, wide), count)
        real = torch.arange(wide) < torch.from_numpy(kept.lengths)[:, None]
        words[: len(kept)][real] = torch.from_numpy(kept.items)
        self.register_buffer("words", words, persistent=False)

    def forward(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """``(.., P)`` attribute ids of items ``(..)``, and which of them are real."""
        words = self.words[items]
        return words, words < self.count
