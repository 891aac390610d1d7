"""What all tokenizers do before they learn: check the domains, pool their vectors, weigh them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from catalex.errors import CatalexError, user_error
from catalex.tokenizers.base import TokenizerDomain
from catalex.types import Floats

Balance = Literal["proportional", "equal"]


def check_domains(domains: Sequence[TokenizerDomain], needed: int, option: str = "codebook_size") -> int:
    """Refuse domains that no tokenizer can learn from; return the common width D.

    Args:
        domains: What `Tokenizer.fit` was given.
        needed: Vectors that the largest codebook needs, over all domains together.
        option: The option that sets its size, for the message.

    Raises:
        CatalexError: No domain, an empty domain, different widths, NaN or infinite values, too few vectors.
    """
    if not domains:
        raise user_error(
            "a tokenizer needs at least one domain to learn from", place="tokenize", remedy="name a domain"
        )
    width = int(domains[0].vectors.shape[-1])
    for domain in domains:
        place = f"domain {domain.name!r}"
        if not len(domain.vectors):
            raise user_error(
                "the domain has no items to learn from",
                place=place,
                remedy="leave it out or prepare it again",
            )
        check_vectors(domain.vectors, width, place, of=f"domain {domains[0].name!r}")
    total = sum(len(domain.vectors) for domain in domains)
    if total < needed:
        raise user_error(
            "there are fewer items than codes in a codebook",
            place=f"domains {', '.join(domain.name for domain in domains)}",
            value=total,
            allowed=f"at least {needed} items",
            remedy=f"set {option} to at most {total} or add items",
        )
    return width


def check_vectors(
    vectors: Floats, width: int, place: str, of: str = "the tokenizer", *, first: int = 0
) -> None:
    """Refuse vectors that are not ``(N, width)`` and finite; names the first bad row, counted from `first`.

    Raises:
        CatalexError: Wrong shape, or NaN or infinite values.
    """
    if vectors.ndim != 2 or vectors.shape[1] != width:
        raise user_error(
            "the content vectors have another width than expected",
            place=place,
            value=tuple(vectors.shape),
            allowed=f"(items, {width}) as in {of}",
            remedy="embed all domains with one content encoder",
        )
    with np.errstate(all="ignore"):
        if np.isfinite(vectors.sum()):  # one pass that holds nothing; a sum that overflows proves nothing
            return
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        row = first + int(np.flatnonzero(~finite)[0])
        raise user_error(
            "a content vector holds NaN or infinite values",
            place=f"{place}, row {row}",
            remedy="embed the items again and check the text of that item",
        )


def checked_rows(vectors: Floats, width: int) -> Tensor:
    """Vectors ``(N, width)`` that are to be tokenized, as a float32 tensor.

    They are copied only where PyTorch needs it: vectors of other types, and of memory that is read-only.

    Raises:
        CatalexError: See `check_vectors`.
    """
    check_vectors(vectors, width, "vectors to tokenize")
    return torch.from_numpy(np.require(vectors, np.float32, ["C", "W"]))


def untrained(tokenizer: str) -> CatalexError:
    """The error of a tokenizer that is used before it has learned anything."""
    return user_error("the tokenizer has not been trained", place=tokenizer, remedy="call fit or load first")


def pooled(domains: Sequence[TokenizerDomain], balance: Balance) -> tuple[Tensor, Tensor]:
    """The vectors ``(N, D)`` of all domains, one after the other, and their weights ``(N,)``.

    "proportional" weighs every item alike; "equal" gives every domain the same total weight. Weights average
    1.
    """
    vectors = torch.cat([torch.from_numpy(np.array(domain.vectors, dtype=np.float32)) for domain in domains])
    if balance == "proportional":
        return vectors, torch.ones(len(vectors))
    share = len(vectors) / len(domains)
    return vectors, torch.cat([torch.full((len(d.vectors),), share / len(d.vectors)) for d in domains])
