"""Small pictures of items inside a page: JPEGs as data URIs, bounded in sum."""

from __future__ import annotations

import base64
import importlib.util
import io
from pathlib import Path

import numpy as np

from catalex.data.images import ImageStore, decode_image
from catalex.errors import CatalexError
from catalex.progress import say
from catalex.types import Ints

SIDE = 120
"""Longest side of a thumbnail in pixels."""
QUALITY = 80
"""Of the JPEG; a poster of 120 pixels then has about 5 kB."""
LIMIT = 2_000_000
"""Characters that all pictures of a report may have together: about 300 posters, in a page that is still sent
by e-mail."""
URI = "data:image/jpeg;base64,"


def thumbnail(data: bytes, side: int = SIDE) -> bytes:
    """A JPEG of at most `side` pixels.

    Raises:
        CatalexError: When `data` is not an image that can be decoded, or Pillow is not installed.
    """
    buffer = io.BytesIO()
    decode_image(data, size=side).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


class Pictures:
    """Thumbnails of one domain's items. No image stops anything: what cannot be shown is counted.

    Attributes:
        unreadable: Images that could not be decoded.
        left_out: Thumbnails that would have passed the limit.
    """

    def __init__(self, store: ImageStore, limit: int = LIMIT) -> None:
        self._store = store
        self._left = limit
        self._made: dict[int, str | None] = {}
        self.unreadable = 0
        self.left_out = 0

    @property
    def items(self) -> Ints:
        """Items that have an image, ascending."""
        return np.sort(self._store.ids)

    def of(self, item: int) -> str | None:
        """The data URI of an item's thumbnail; None when it has no image or none that can be shown."""
        if item not in self._made:
            self._made[item] = self._make(item)
        uri = self._made[item]
        if uri is None:
            return None
        if len(uri) > self._left:
            self.left_out += 1
            return None
        self._left -= len(uri)
        return uri

    def _make(self, item: int) -> str | None:
        data = self._store.get(item)
        if data is None:
            return None
        try:
            return URI + base64.b64encode(thumbnail(data)).decode("ascii")
        except CatalexError:
            self.unreadable += 1
            return None


def open_pictures(paths: dict[str, Path], limit: int = LIMIT) -> dict[str, Pictures]:
    """The pictures of the domains whose image file exists, the limit shared equally among them.

    Without Pillow there are none, and one line says how to get them.

    Args:
        paths: Image file by domain, there or not.
        limit: Characters of all pictures together.

    Raises:
        CatalexError: When an image file is damaged.
    """
    present = {name: path for name, path in paths.items() if path.is_file()}
    if not present:
        return {}
    if importlib.util.find_spec("PIL") is None:
        say("the report has no pictures, they need Pillow: pip install 'catalex[images]'")
        return {}
    return {name: Pictures(ImageStore(path), limit // len(present)) for name, path in present.items()}
