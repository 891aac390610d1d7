"""`Reader`: what the encoder and the tokenizer of a bundle make of content that was never seen before.

Texts are put together, embedded and tokenized as in the run that made the bundle: its recipe says how.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from catalex.artifacts import read_json, read_parquet
from catalex.bundle import Bundle
from catalex.data import columns as c
from catalex.errors import user_error
from catalex.features import ContentEncoder, ItemContent, make_encoder
from catalex.features.embed import seen_by
from catalex.features.fusion import Fusion
from catalex.features.text import TextOptions, clean, item_text
from catalex.serving.items import NewItem
from catalex.tokenizers import ContentTokenizer, Tokenizer, load_tokenizer
from catalex.tokenizers.conflicts import Method
from catalex.types import Codes, Floats

PUBLISHED = "the identifiers of this bundle were published by others, so nobody can make more of them"


class Reader:
    """Encoder, text settings and tokenizer of a bundle. Safe to use from several threads, one at a time.

    Args:
        bundle: Its recipe names the encoder.
        device: Where encoder and tokenizer compute.
    """

    def __init__(self, bundle: Bundle, device: str = "cpu") -> None:
        self.bundle, self.device = bundle, device
        self.recipe: dict[str, Any] = read_json(bundle.folder / "recipe.json")
        self.text_options = TextOptions.parse(self.recipe.get("text", {}), "recipe.json: text")
        self.method: Method = self.recipe.get("tokenize", {}).get("conflicts", "reassign")
        self._lock = threading.RLock()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The frozen tokenizer of the bundle's domain.

        Raises:
            CatalexError: When the bundle has none.
        """
        folder = self.bundle.folder / "tokenizer"
        if not folder.is_dir():
            raise user_error(
                PUBLISHED,
                place=self.bundle.folder,
                remedy="serve a bundle with a tokenizer of its own to add items or read texts",
            )
        return load_tokenizer(folder)

    @cached_property
    def encoder(self) -> ContentEncoder:
        """The content encoder; one that depends on the catalogue is fitted on the bundle's items again.

        Raises:
            CatalexError: When it was fitted on pictures, which a bundle does not hold.
        """
        encoder = make_encoder(self.recipe["encoder"], "recipe.json: encoder", self.device)
        if encoder.corpus_dependent:
            if isinstance(encoder, Fusion) or encoder.needs_images:
                raise user_error(
                    "the encoder was fitted on the pictures of the catalogue, which a bundle does not hold",
                    place=self.bundle.folder / "recipe.json",
                    value=self.recipe["encoder"],
                    remedy="use an encoder with fixed weights, for fusion 'missing: zero'",
                )
            encoder.fit([seen_by(encoder, ItemContent(text)) for text in self.catalogue_texts])
        return encoder

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The bundle's items, as rows of ``items.parquet``."""
        found: list[dict[str, Any]] = read_parquet(self.bundle.folder / c.ITEMS_FILE).to_pylist()
        return found

    @cached_property
    def catalogue_texts(self) -> list[str]:
        """The texts of the bundle's items."""
        return [item_text(row, self.text_options) for row in self.rows]

    def forget(self) -> None:
        """Let go of the bundle's rows and texts, which are read again where somebody asks."""
        for name in ("rows", "catalogue_texts"):
            vars(self).pop(name, None)

    @property
    def can_place(self) -> bool:
        """Whether new items can be given identifiers."""
        return (self.bundle.folder / "tokenizer").is_dir()

    @property
    def wants_images(self) -> bool:
        """Whether an image changes the identifier."""
        tokenizer = self.tokenizer
        reads = isinstance(tokenizer, ContentTokenizer) and tokenizer.reads_images
        return reads or self.encoder.needs_images

    def text_of(self, new: NewItem) -> str:
        """What the encoder reads of a new item."""
        if new.text is not None:
            limit = self.text_options.max_characters
            return clean(new.text[: 4 * limit].replace("\0", ""))[:limit].rstrip()
        row = {
            c.TITLE: new.title,
            c.BRAND: new.brand,
            c.CATEGORIES: list(new.categories) or None,
            c.DESCRIPTION: new.description,
            c.KEYWORDS: new.keywords,
            c.EXTRA: dict(new.extra),
        }
        return item_text(row, self.text_options).replace("\0", "")

    def vectors(self, content: Sequence[ItemContent]) -> Floats:
        """``(N, D')`` rows that the tokenizer quantizes.

        Raises:
            CatalexError: When there is no tokenizer, or an encoder gives numbers that are not finite.
        """
        with self._lock:
            tokenizer, encoder = self.tokenizer, self.encoder
            found = encoder.encode([seen_by(encoder, item) for item in content])
            # rounded as the run stored them, so that equal content has equal codes
            vectors: Floats = found.astype(np.float16).astype(np.float32)
            if isinstance(tokenizer, ContentTokenizer):
                name = self.bundle.manifest["domain"]
                vectors = tokenizer.represent(content, vectors, name=name, device=self.device)
        if not np.isfinite(vectors).all():
            raise user_error("the encoder gave values that are not numbers", place="new items")
        return vectors

    def codes(self, vectors: Floats) -> Codes:
        """``(N, L)`` nearest codes, before conflict handling."""
        with self._lock:
            return self.tokenizer.encode(vectors)
