"""`embed`: the content vectors of a catalogue, block by block through the cache.

The catalogue is walked in item order in blocks of 1024. Of each block only the items that the cache lacks are
encoded, and their vectors are written as one shard before the next block begins. Killed at any moment and
started again, the same blocks meet the same encoder with the same missing items: the vectors are bit for bit
those of one long run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from catalex.artifacts import hash_json, read_arrays, write_arrays
from catalex.data.domain import Domain
from catalex.errors import CatalexError, user_error
from catalex.features.base import ContentEncoder, ItemContent
from catalex.features.cache import VectorCache, content_key
from catalex.features.fusion import Fusion
from catalex.features.lazy import Lazy
from catalex.features.text import TextOptions, domain_texts
from catalex.progress import Track, say
from catalex.types import Floats

BLOCK = 1024
"""Items of a block. Part of what makes a resumed run equal, so it is no option."""


class ImageStore(Protocol):
    """Where image bytes come from (`data.images` has the store of a canonical domain folder)."""

    def get(self, item_id: int) -> bytes | None:
        """The image file of an item, or None when it has none."""


def embed(
    domain: Domain,
    encoder: ContentEncoder,
    *,
    text: TextOptions,
    cache: Path,
    images: ImageStore | None = None,
) -> Floats:
    """Content vectors ``(N, D)`` of the domain's items, row i for item i; norm 1, or 0 for nothing to encode.

    Args:
        domain: The catalogue.
        encoder: What turns content into vectors.
        text: Which columns make up an item's text.
        cache: Root of the vector caches of all encoders.
        images: Image bytes by item; only asked when the encoder needs images.

    Raises:
        CatalexError: When the encoder needs images and there are none.
    """
    if encoder.needs_images and images is None:
        raise user_error(
            f"encoder {encoder.fingerprint!r} needs images, but this domain has none",
            place=domain.name,
            remedy="choose a text encoder such as minilm, or prepare the domain with images",
        )
    texts = domain_texts(domain, text)
    empty = texts.count("")
    if empty and reads_text(encoder):
        say(f"embed {domain.name}: {empty:,} of {len(texts):,} items have no text (zero vectors)")
    return embed_items(CatalogueContent(texts, images), encoder, cache=cache, name=domain.name)


def embed_items(items: Sequence[ItemContent], encoder: ContentEncoder, *, cache: Path, name: str) -> Floats:
    """Content vectors ``(N, D)`` of `items` through the cache below `cache`; `name` is for the progress."""
    if isinstance(
        encoder, Fusion
    ):  # of cached parts, so that other weights or new images encode nothing twice
        text, image = (embed_items(items, part, cache=cache, name=name) for part in encoder.parts)
        encoder.fit_parts(text, image)
        return encoder.fuse(text, image)
    if encoder.corpus_dependent:
        return _embed_corpus(items, encoder, cache, name)
    folder = VectorCache(cache / encoder.fingerprint, encoder.width)
    vectors = np.zeros((len(items), encoder.width), np.float32)
    failures = _failures(encoder)
    with Track(f"embed {name}", total=len(items), unit="items") as track:
        for start in range(0, len(items), BLOCK):
            rows = range(start, min(start + BLOCK, len(items)))
            vectors[rows.start : rows.stop] = _embed_block(
                [seen_by(encoder, items[row]) for row in rows], encoder, folder, track, name, start
            )
    if _failures(encoder) > failures:
        say(f"embed {name}: {_failures(encoder) - failures:,} images could not be read (zero vectors)")
    return vectors


def _embed_block(
    block: list[ItemContent], encoder: ContentEncoder, cache: VectorCache, track: Track, name: str, start: int
) -> Floats:
    """Vectors of one block that begins at item `start`; items with equal content are encoded once."""
    keys = [content_key(item) for item in block]
    vectors, found = cache.get(keys)
    missing = {key: row for row, key in reversed(list(enumerate(keys))) if not found[row]}
    track.advance(len(block) - len(missing))
    if not missing:
        return vectors
    wanted = sorted(missing.values())
    fresh = encoder.encode([block[row] for row in wanted], track.advance)
    _refuse_nan(fresh, [start + row for row in wanted], encoder, name)
    fresh = cache.put([keys[row] for row in wanted], fresh)
    place = {keys[row]: position for position, row in enumerate(wanted)}
    for row in np.flatnonzero(~found):
        vectors[row] = fresh[place[keys[row]]]
    return vectors


def _embed_corpus(items: Sequence[ItemContent], encoder: ContentEncoder, cache: Path, name: str) -> Floats:
    """Vectors of an encoder that is fitted on the catalogue: one file for the whole corpus in its order."""
    corpus = hash_json([content_key(seen_by(encoder, item)).hex() for item in items])
    path = cache / encoder.fingerprint / f"corpus-{corpus[:32]}.safetensors"
    if path.is_file():
        try:
            stored = read_arrays(path)["vectors"]
            if stored.shape == (len(items), encoder.width):
                return stored.astype(np.float32, copy=False)
            reason = f"shape {stored.shape}"
        except (CatalexError, KeyError) as error:
            reason = str(error)
        say(f"warning: {path}: ignored and made again ({reason})")
    content = [seen_by(encoder, item) for item in items]
    with Track(f"embed {name}", total=len(items), unit="items") as track:
        encoder.fit(content)
        vectors = encoder.encode(content, track.advance)
    _refuse_nan(vectors, range(len(items)), encoder, name)
    write_arrays(path, {"vectors": vectors})
    return vectors


def _refuse_nan(vectors: Floats, rows: Sequence[int], encoder: ContentEncoder, name: str) -> None:
    """Refuse vectors ``(n, D)`` of the items `rows` that are not finite, before the cache remembers them."""
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise user_error(
            f"encoder {encoder.fingerprint!r} gave NaN or infinite values for {len(bad):,} items",
            place=f"embed {name}, row {rows[bad[0]]} of the items",
            remedy="check the content of that item, or choose another encoder",
        )


class CatalogueContent(Lazy[ItemContent]):
    """Texts and images of a catalogue; image bytes are fetched only for the item that is asked for."""

    def __init__(self, texts: Sequence[str], images: ImageStore | None = None) -> None:
        self._texts, self._images = texts, images

    def __len__(self) -> int:
        return len(self._texts)

    def fetch(self, place: int) -> ItemContent:
        return ItemContent(self._texts[place], None if self._images is None else self._images.get(place))


def reads_text(encoder: ContentEncoder) -> bool:
    """Whether the text matters to the encoder (False only for pure image encoders)."""
    return bool(getattr(encoder, "reads_text", True))


def seen_by(encoder: ContentEncoder, item: ItemContent) -> ItemContent:
    """The part of an item that the encoder looks at; a change elsewhere leaves the cache valid."""
    return ItemContent(item.text if reads_text(encoder) else "", item.image if encoder.needs_images else None)


def _failures(encoder: ContentEncoder) -> int:
    return int(getattr(encoder, "failures", 0))
