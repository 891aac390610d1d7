"""Beam search for any number of histories: batches of similar length, results in the order given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from catalex.decoding.beam import Decoded, Precision, check_sizes, nothing_found, search_index
from catalex.decoding.masks import OpenNodes, exclusions, open_nodes
from catalex.decoding.trie import Trie
from catalex.errors import user_error
from catalex.models.t5 import PAD, T5
from catalex.types import Ints


def search_all(
    model: T5,
    histories: Sequence[NDArray[Any] | Sequence[int]],
    trie: Trie,
    *,
    beam: int,
    k: int,
    allowed: NDArray[np.bool_] | None = None,
    exclude: Sequence[NDArray[Any] | Sequence[int]] | None = None,
    precision: Precision = "fp32",
    batch_size: int = 64,
    progress: Callable[[int], None] | None = None,
) -> Decoded:
    """`beam_search` for any number of histories, on the model's device, in batches of similar length.

    Args:
        histories: U token sequences without padding, each with at least one token (the end token will do).
        allowed: ``(N,)`` or ``(U, N)``.
        exclude: For each history the ids of items that may not come out.
        batch_size: Histories at a time. Bounds memory, changes no result: the largest arrays of a batch hold
            ``batch_size x beam x V`` float32 and ``batch_size x beam x`` (most children of a node) int64.
        progress: Called with the number of histories just finished.

    Returns:
        Results in the order of `histories`, as tensors on the CPU.

    Raises:
        CatalexError: As `beam_search`, and when a history is empty or holds padding.
        FloatingPointError: When the model's scores are not numbers.
    """
    if batch_size < 1:
        raise user_error("the batch size must be positive", place="batch_size", value=batch_size)
    check_sizes(beam, k)
    device = model.embedding.weight.device
    lengths = np.fromiter((len(history) for history in histories), np.int64, len(histories))
    flat = np.concatenate([np.zeros(0, np.int64), *(np.asarray(history, np.int64) for history in histories)])
    ends = np.cumsum(lengths)
    _check_histories(lengths, ends, flat, model.vocabulary)
    if allowed is not None and allowed.ndim == 2 and len(allowed) != len(lengths):
        shape = f"({len(lengths)}, items)"
        raise user_error(
            "the mask has another number of histories", place="allowed", value=allowed.shape, allowed=shape
        )
    index = trie.to(device)  # one state for all batches, whatever is added meanwhile
    excluded = None if exclude is None else exclusions(exclude, len(lengths), torch.device("cpu"))
    shared = None
    if allowed is not None and allowed.ndim == 1 and len(lengths) and len(allowed) == index.size:
        shared = open_nodes(index, torch.from_numpy(allowed).to(device))
    found = nothing_found(len(lengths), k, torch.device("cpu"))
    order = np.argsort(lengths, kind="stable")
    for begin in range(0, len(order), batch_size):
        chosen = order[begin : begin + batch_size]
        position = np.arange(lengths[chosen].max())
        inside = position < lengths[chosen, None]
        places = (ends - lengths)[chosen, None] + position
        padded = np.where(inside, flat[np.where(inside, places, 0)], PAD)
        mask: torch.Tensor | OpenNodes | None = shared
        if allowed is not None and mask is None:
            mask = torch.from_numpy(allowed if allowed.ndim == 1 else allowed[chosen]).to(device)
        gone = None if excluded is None else excluded[torch.from_numpy(chosen)].to(device)
        best = search_index(model, torch.from_numpy(padded).to(device), index, beam, k, mask, gone, precision)
        where = torch.from_numpy(chosen)
        found.items[where], found.scores[where] = best.items.cpu(), best.scores.cpu()
        if progress is not None:
            progress(len(chosen))
    if found.scores.isnan().any():
        raise FloatingPointError("the model's scores are not numbers")
    return found


def _check_histories(lengths: Ints, ends: Ints, flat: Ints, vocabulary: int) -> None:
    """Refuse an empty history, and tokens that are padding or unknown."""
    if (lengths == 0).any():
        raise user_error(
            "the history is empty", place=f"history {lengths.argmin()}", remedy="give at least the end token"
        )
    wrong = np.flatnonzero((flat <= PAD) | (flat >= vocabulary))
    if len(wrong):
        place = f"history {np.searchsorted(ends, wrong[0], side='right')}"
        raise user_error(
            "a token is not in the vocabulary",
            place=place,
            value=int(flat[wrong[0]]),
            allowed=f"1 to {vocabulary - 1}",
        )
