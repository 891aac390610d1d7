"""Names and types of the canonical domain folder: one word for one thing, in one place.

A canonical domain folder holds::

    items.parquet         one row an item, item_id = 0..N-1 = row number
    interactions.parquet  sorted by user_id, then position
    images/               optional: shard files of image bytes by item_id
    manifest.json         counts, hashes, the split and its id, where everything came from
"""

from __future__ import annotations

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

ITEMS_SCHEMA = pa.schema(
    [
        (ITEM_ID, pa.int32()),
        (SOURCE_ID, pa.string()),
        (TITLE, pa.string()),
        (BRAND, pa.string()),
        (CATEGORIES, pa.list_(pa.string())),
        (DESCRIPTION, pa.string()),
        (KEYWORDS, pa.string()),
        (EXTRA, pa.string()),
        (IMAGE, pa.string()),
    ]
)
"""`extra` is a JSON object with further fields; `image` is a path, URL or ``images.parquet#<item_id>``."""

INTERACTIONS_SCHEMA = pa.schema(
    [
        (USER_ID, pa.int32()),
        (ITEM_ID, pa.int32()),
        (POSITION, pa.int32()),
        (TIMESTAMP, pa.int64()),
        (SPLIT, pa.int8()),
    ]
)
"""`timestamp` is in Unix seconds and null where the source kept only the order."""
