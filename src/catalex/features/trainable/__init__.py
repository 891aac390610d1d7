"""Content encoders that are trained end to end with a tokenizer (UTGRec). One file an encoder, one table.

A new encoder is a new file with a subclass of `TrainableEncoder` and one line in `TRAINABLE_ENCODERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from catalex.errors import lookup, user_error
from catalex.features.trainable.base import Batch, ContentIndex, TextTargets, TrainableEncoder
from catalex.features.trainable.frozen import FrozenEncoder
from catalex.features.trainable.mini import MiniEncoder
from catalex.options import Options


def _qwen2_vl() -> type[TrainableEncoder]:
    from catalex.features.trainable.qwen2_vl import QwenVLEncoder

    return QwenVLEncoder


def _smolvl() -> type[TrainableEncoder]:
    from catalex.features.trainable.smolvl import SmolVLEncoder

    return SmolVLEncoder


TRAINABLE_ENCODERS: dict[str, Callable[[], type[TrainableEncoder]]] = {
    "mini": lambda: MiniEncoder,
    "frozen": lambda: FrozenEncoder,
    "qwen2-vl": _qwen2_vl,
    "smolvl": _smolvl,
}
"""Every trainable encoder by its name in recipes. A value gives the class when called, so that the files of
the large language models are read only by those who use them."""


def trainable_encoder_options(settings: Mapping[str, Any], place: str) -> Options:
    """The checked options of the encoder that a block of a recipe describes; no weights are loaded.

    Args:
        settings: For example ``{"name": "mini", "max_tokens": 64}``.
        place: Where the block stands in the recipe, for messages ("tokenizer.encoder").

    Raises:
        CatalexError: When the name or an option is missing, unknown or out of range.
    """
    return _checked(settings, place)[1]


def make_trainable_encoder(
    settings: Mapping[str, Any], place: str, *, levels: int, seed: int, vectors_width: int | None = None
) -> TrainableEncoder:
    """The encoder that a block of a recipe describes, with its starting weights, on the CPU.

    Args:
        settings: Its `name` and the options of that encoder.
        place: Where the block stands in the recipe, for messages.
        levels: L, code tokens an item.
        seed: Fixes every weight that does not come from a checkpoint.
        vectors_width: D of the frozen content vectors, for encoders with `reads_vectors`.

    Raises:
        CatalexError: When the settings are wrong, a package or folder is missing, or an encoder that reads
            content vectors gets none.
    """
    kind, options = _checked(settings, place)
    parts: dict[str, Any] = {"levels": levels, "seed": seed}
    if kind.reads_vectors and vectors_width is None:
        raise user_error(
            f"encoder {settings['name']!r} reads content vectors, and this run has none",
            place=place,
            remedy="add an 'embed' block to the recipe, or choose encoder 'mini'",
        )
    if kind.reads_vectors:
        parts["vectors_width"] = vectors_width
    construct: Any = kind
    made: TrainableEncoder = construct(options, **parts)
    return made


def _checked(settings: Mapping[str, Any], place: str) -> tuple[type[TrainableEncoder], Options]:
    """Class and options of the encoder that `settings` name."""
    options = dict(settings)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise user_error(
            "the name of the encoder is missing" if name is None else "the name of the encoder is not a text",
            place=f"{place}.name",
            value=name,
            allowed=sorted(TRAINABLE_ENCODERS),
            remedy="add 'name: mini'",
        )
    kind = lookup(TRAINABLE_ENCODERS, name, "trainable encoder")()
    return kind, kind.Options.parse(options, place)


__all__ = [
    "TRAINABLE_ENCODERS",
    "Batch",
    "ContentIndex",
    "TextTargets",
    "TrainableEncoder",
    "make_trainable_encoder",
    "trainable_encoder_options",
]
