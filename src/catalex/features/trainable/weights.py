"""Stored weights back into an encoder, with a sentence for every way in which they may not fit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from catalex.errors import nearest, user_error


def take_weights(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], encoder: str) -> None:
    """Copy `weights` into the tensors `own`, bit for bit; nothing is copied unless all of them fit.

    Args:
        own: The encoder's tensors by the names they are stored under.
        weights: What was stored.
        encoder: Name of the encoder, for messages.

    Raises:
        CatalexError: When a tensor is missing, unknown, or of another shape or type.
    """
    remedy = "load the tokenizer with the encoder and options that it was trained with"
    for name in own:
        if name not in weights:
            raise user_error(
                f"tensor {name!r} is missing", place=f"weights of encoder {encoder!r}", remedy=remedy
            )
    for name, value in weights.items():
        place = f"weights of encoder {encoder!r}"
        if name not in own:
            raise user_error(
                f"tensor {name!r} is unknown", place=place, allowed=nearest(name, own), remedy=remedy
            )
        if value.shape != own[name].shape:
            raise user_error(
                f"tensor {name!r} has another shape",
                place=place,
                value=tuple(value.shape),
                allowed=str(tuple(own[name].shape)),
                remedy=remedy,
            )
        if value.dtype != own[name].dtype:
            raise user_error(
                f"tensor {name!r} has another type",
                place=place,
                value=str(value.dtype),
                allowed=str(own[name].dtype),
                remedy=remedy,
            )
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)
