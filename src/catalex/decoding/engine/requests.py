"""What a batch of requests may ask for besides its histories, and the sentences when it may not."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from catalex.errors import user_error


@dataclass(frozen=True)
class Restrictions:
    """Which items may come out for U users; None everywhere for all.

    Attributes:
        allowed: ``(N,)`` or ``(U, N)`` bool.
        excluded: ``(U, E)`` int64 items that may not, -1 for none.
        filters: ``(U,)`` int, each user's row of the engine's filters, -1 for none.
    """

    allowed: Tensor | None = None
    excluded: Tensor | None = None
    filters: Tensor | None = None

    def of(self, users: slice) -> Restrictions:
        """Those of some of the users."""
        allowed, excluded, filters = self.allowed, self.excluded, self.filters
        return Restrictions(
            allowed if allowed is None or allowed.dim() == 1 else allowed[users],
            None if excluded is None else excluded[users],
            None if filters is None else filters[users],
        )

    def mask(self, users: int, size: int, kept: Tensor | None) -> Tensor | None:
        """All of them as one item mask for `size` items; `kept` are the filters after a row of ones."""
        mask = self.allowed
        if self.filters is not None:
            assert kept is not None, "checked before"
            mask = kept[self.filters.long().cpu() + 1]
        if self.excluded is not None and self.excluded.numel():
            items = self.excluded.cpu()
            wide = (
                torch.ones(users, size, dtype=torch.bool) if mask is None else mask.cpu().expand(users, size)
            )
            places = items.where((items >= 0) & (items < size), size)  # one column more takes what is no item
            mask = F.pad(wide, (0, 1)).scatter(1, places, False)[:, :size]
        return mask


def check(
    tokens: Tensor, restrictions: Restrictions, vocabulary: int, size: int, filters: int | None
) -> None:
    """Refuse what cannot be searched for; `filters` is their number, None when none are set.

    Raises:
        CatalexError: Place, value, what is allowed.
    """
    if tokens.dim() != 2 or tokens.shape[1] == 0:
        raise user_error(
            "histories must be (users, tokens) with at least one token",
            place="tokens",
            value=tuple(tokens.shape),
        )
    if tokens.numel() and not tokens.is_cuda:  # looking at tokens on a device would wait for it
        array = tokens.numpy()
        low, high = int(array.min()), int(array.max())
        if not 0 <= low <= high < vocabulary:
            raise user_error(
                "a token is not in the vocabulary",
                place="tokens",
                value=low if low < 0 else high,
                allowed=f"0 to {vocabulary - 1}",
            )
    allowed, chosen, users = restrictions.allowed, restrictions.filters, len(tokens)
    shapes = [(size,), (users, size)]
    if allowed is not None and (allowed.dtype != torch.bool or tuple(allowed.shape) not in shapes):
        raise user_error(
            "the item mask has the wrong type or shape",
            place="allowed",
            value=f"{allowed.dtype} {tuple(allowed.shape)}",
            allowed=f"bool {shapes[0]} or {shapes[1]}",
        )
    excluded = restrictions.excluded
    if excluded is not None and (excluded.dim() != 2 or len(excluded) != users):
        raise user_error(
            "the excluded items have the wrong shape",
            place="excluded",
            value=tuple(excluded.shape),
            allowed=f"({users}, items)",
        )
    if chosen is None:
        return
    if filters is None:
        raise user_error("no filters are set", place="filters", remedy="call set_filters first")
    if allowed is not None:
        raise user_error("a mask and filters are given together", remedy="put the mask among the filters")
    if tuple(chosen.shape) != (users,) or (
        not chosen.is_cuda and chosen.numel() and not -1 <= int(chosen.min()) <= int(chosen.max()) < filters
    ):
        raise user_error(
            "each user needs the number of a filter",
            place="filters",
            value=chosen.tolist(),
            allowed=f"-1 to {filters - 1}",
        )
