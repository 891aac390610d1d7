"""Item images: safe decoding, polite fetching, and reading them back by item.

`fetch_images` turns addresses into ``images.parquet``, the image file of the canonical domain folder;
`ImageStore` reads that file. Whatever comes from the network passes through `decode_image` and is encoded
anew, so that nothing but small, plain JPEGs ever enters a domain.
"""

from __future__ import annotations

from catalex.data.images.addresses import ImageOptions
from catalex.data.images.decoding import decode_image
from catalex.data.images.fetching import ImageReport, fetch_images
from catalex.data.images.store import IMAGES_SCHEMA, ImageStore

__all__ = ["IMAGES_SCHEMA", "ImageOptions", "ImageReport", "ImageStore", "decode_image", "fetch_images"]
