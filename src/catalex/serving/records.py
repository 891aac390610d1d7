"""Between what a caller brings, what the store keeps, and what is served."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from catalex.artifacts import hash_array, hash_json
from catalex.errors import user_error
from catalex.features import ItemContent
from catalex.serving.items import (
    Change,
    Item,
    NewItem,
    checked_attributes,
    checked_categories,
    checked_key,
    checked_title,
    short,
)
from catalex.serving.reading import Reader
from catalex.serving.shelf import Shelf
from catalex.serving.store import Record
from catalex.types import Floats


def draft_of(reader: Reader, new: NewItem) -> Record:
    """A new item, checked, without number and identifier."""
    key, text = checked_key(new.key), reader.text_of(new)
    categories = checked_categories(new.categories)
    attributes = {n: v for n, v in checked_attributes(new.attributes).items() if v is not None}
    title = checked_title(new.title or "") or checked_title(text) or key
    image = None if new.image is None else np.frombuffer(new.image, np.uint8)
    parts = [title, text, list(categories), new.in_stock, attributes]
    digest = hash_json([*parts, None if image is None else hash_array(image)])
    return Record(-1, key, True, 0, title, text, categories, new.in_stock, attributes, False, digest)


def vectors_by_key(
    reader: Reader, drafts: Sequence[Record], images: Mapping[str, bytes]
) -> dict[str, Floats]:
    """Content rows ``(D',)`` by key.

    Raises:
        CatalexError: When an item has nothing that the encoder reads.
    """
    if not drafts:
        return {}
    wants = reader.wants_images
    for draft in drafts:
        if not draft.text and not (wants and draft.key in images):
            raise user_error(
                f"item {short(draft.key)} has no content",
                allowed="a title, a text" + (", or an image" if wants else ""),
                remedy="give one: its identifier is made of it",
            )
    rows = reader.vectors([ItemContent(draft.text, images.get(draft.key)) for draft in drafts])
    return dict(zip([draft.key for draft in drafts], rows, strict=True))


def put_all(shelf: Shelf, records: Sequence[Record]) -> None:
    """Bring a shelf up to records; those that left come first, since newcomers may have their identifier."""
    for record in records:
        if not record.live and shelf.drop(record.number) is None and record.codes is not None:
            shelf.remember(record.number, record.key, record.codes)
    for record in records:
        if record.live and record.codes is not None:
            shelf.put(
                Item(
                    record.key,
                    record.number,
                    record.codes,
                    record.title,
                    record.text,
                    record.categories,
                    record.in_stock,
                    record.attributes,
                    record.has_image,
                )
            )


def record_of(item: Item) -> Record:
    """An item as the store keeps it."""
    return Record(
        item.number,
        item.key,
        True,
        0,
        item.title,
        item.text,
        item.categories,
        item.in_stock,
        item.attributes,
        item.has_image,
        codes=item.identifier,
    )


def changed_item(item: Item, change: Change) -> Item:
    """An item after a change."""
    merged = {**item.attributes, **checked_attributes(change.attributes or {})}
    categories = item.categories if change.categories is None else checked_categories(change.categories)
    return replace(
        item,
        title=item.title if change.title is None else checked_title(change.title) or item.title,
        categories=categories,
        in_stock=item.in_stock if change.in_stock is None else change.in_stock,
        attributes={name: value for name, value in merged.items() if value is not None},
    )
