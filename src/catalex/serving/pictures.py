"""Pictures in requests: base64 in JSON, checked before they are unpacked.

A picture of a few kilobytes can unpack to gigabytes. Its head says how large it is, so the number of pixels
is known before anything is unpacked.
"""

from __future__ import annotations

import base64
import binascii
import io
import warnings

from catalex.errors import require
from catalex.serving.problem import ProblemError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
"""What pictures of shops come in; Pillow's other readers are never started."""


def picture(text: str | None, *, max_bytes: int, max_pixels: int) -> bytes | None:
    """The bytes of a picture, or None without one.

    Raises:
        ProblemError: 413 for too many bytes or pixels, 422 when it is not base64, not a picture or broken.
        CatalexError: When Pillow is missing.
    """
    if text is None:
        return None
    if text[:5] == "data:":
        text = text.partition(",")[2]
    if len(text) > (max_bytes + 2) // 3 * 4:
        raise ProblemError(413, f"image: the picture has more than {max_bytes} bytes.")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ProblemError(422, "image: the text is not base64.") from None
    require("PIL", "images")
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own warning of large pictures: ours is the limit
            with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
                if opened.width * opened.height > max_pixels:
                    raise ProblemError(413, f"image: the picture has more than {max_pixels} pixels.")
                opened.load()
    except ProblemError:
        raise
    except Image.DecompressionBombError:
        raise ProblemError(413, f"image: the picture has more than {max_pixels} pixels.") from None
    except Exception:  # Pillow's readers raise what they like on broken files
        raise ProblemError(
            422, f"image: this is not a readable picture; allowed: {', '.join(FORMATS)}."
        ) from None
    return data
