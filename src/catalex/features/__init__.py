"""Item content to vectors: text and image encoders, their fusion, and the cache that remembers their work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from catalex.errors import lookup, user_error
from catalex.features.base import ContentEncoder, ItemContent
from catalex.features.efficientnet import EfficientNetLite0, EfficientNetLite0Options
from catalex.features.embed import embed, embed_items
from catalex.features.fusion import Fusion, FusionOptions, make_fusion
from catalex.features.minilm import MiniLM
from catalex.features.text import TextOptions, domain_texts, item_text
from catalex.features.tfidf_svd import TfidfSvd, TfidfSvdOptions
from catalex.features.transformer_text import PREFIX, TransformerText, TransformerTextOptions, find_folder

ENCODERS: dict[str, type[ContentEncoder]] = {
    "minilm": MiniLM,
    "tfidf-svd": TfidfSvd,
    "efficientnet-lite0": EfficientNetLite0,
    "fusion": Fusion,
}
"""Encoders by the name that recipes use; ``hf:<id or folder>`` names any further transformer."""


def make_encoder(settings: Mapping[str, Any], place: str, device: str = "cpu") -> ContentEncoder:
    """The encoder that a block of a recipe describes: its `name`, and the options of that encoder.

    Args:
        settings: For example ``{"name": "minilm", "max_tokens": 64}``.
        place: Where the block stands in the recipe, for messages ("embed.encoder").
        device: Where the encoder computes, as torch names it.

    Raises:
        CatalexError: When the name or an option is unknown, or a package or folder is missing.
    """
    options = {key: value for key, value in settings.items() if key != "name"}
    name = settings.get("name")
    if not isinstance(name, str):
        raise user_error(
            "the name of the encoder is missing" if name is None else "the name of the encoder is not a text",
            place=f"{place}.name",
            value=name,
            allowed=[*sorted(ENCODERS), f"{PREFIX}<id or folder>"],
            remedy="add 'name: minilm'",
        )
    if name.startswith(PREFIX):
        checked = TransformerTextOptions.parse(options, place)
        return TransformerText(find_folder(name.removeprefix(PREFIX), f"{place}.name"), checked, device)
    kind = lookup(ENCODERS, name, "encoder")
    if kind is MiniLM:
        return MiniLM(TransformerTextOptions.parse(options, place), device)
    if kind is TfidfSvd:
        return TfidfSvd(TfidfSvdOptions.parse(options, place), device)
    if kind is EfficientNetLite0:
        return EfficientNetLite0(EfficientNetLite0Options.parse(options, place), device)
    return make_fusion(
        FusionOptions.parse(options, place), place, lambda part, where: make_encoder(part, where, device)
    )


__all__ = [
    "ENCODERS",
    "ContentEncoder",
    "Fusion",
    "ItemContent",
    "TextOptions",
    "domain_texts",
    "embed",
    "embed_items",
    "find_folder",
    "item_text",
    "make_encoder",
]
