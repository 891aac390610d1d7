"""Names and types of the canonical domain folder: one word for one thing, in one place.

A canonical domain folder holds::

    items.parquet         one row an item, item_id = 0..N-1 = row number
    interactions.parquet  sorted by user_id, then position
    images/               optional: shard files of image bytes by item_id
    manifest.json         counts, hashes, the split and its id, where everything came from
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

ITEMS_FILE = "items.parquet"
INTERACTIONS_FILE = "interactions.parquet"
IMAGES_FILE = "images.parquet"
MANIFEST_FILE = "manifest.json"

ITEM_ID = "item_id"
SOURCE_ID = "source_id"
TITLE = "title"
BRAND = "brand"
CATEGORIES = "categories"
DESCRIPTION = "description"
KEYWORDS = "keywords"
EXTRA = "extra"
IMAGE = "image"
TEXT_COLUMNS = (TITLE, BRAND, CATEGORIES, DESCRIPTION, KEYWORDS)

USER_ID = "user_id"
POSITION = "position"
TIMESTAMP = "timestamp"
SPLIT = "split"

TRAIN, VALID, TEST = 0, 1, 2
"""Values of the `split` column."""

_ITEM_FIELDS: list[pa.Field[Any]] = [
    pa.field(ITEM_ID, pa.int32()),
    pa.field(SOURCE_ID, pa.string()),
    pa.field(TITLE, pa.string()),
    pa.field(BRAND, pa.string()),
    pa.field(CATEGORIES, pa.list_(pa.string())),
    pa.field(DESCRIPTION, pa.string()),
    pa.field(KEYWORDS, pa.string()),
    pa.field(EXTRA, pa.string()),
    pa.field(IMAGE, pa.string()),
]
ITEMS_SCHEMA = pa.schema(_ITEM_FIELDS)
"""`extra` is a JSON object with further fields; `image` is a path, URL or ``images.parquet#<item_id>``."""

INTERACTIONS_SCHEMA = pa.schema(
    [
        pa.field(USER_ID, pa.int32()),
        pa.field(ITEM_ID, pa.int32()),
        pa.field(POSITION, pa.int32()),
        pa.field(TIMESTAMP, pa.int64()),
        pa.field(SPLIT, pa.int8()),
    ]
)
"""`timestamp` is in Unix seconds and null where the source kept only the order."""
