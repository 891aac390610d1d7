"""Untrusted bytes to an upright RGB image, within limits that are checked before any pixel is decoded."""

from __future__ import annotations

import io
import threading
import warnings
from typing import TYPE_CHECKING

import numpy as np

from catalex.errors import CatalexError, require, user_error

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 50_000_000
"""Pixels of the largest image that is decoded: above any product photo, at most 150 MB in memory as RGB."""

MAX_BYTES = 32 * 1024 * 1024
"""Bytes of the largest image file that is accepted."""

FORMATS = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")
"""What shops publish. Pillow knows dozens more; each is attack surface (EPS even starts Ghostscript)."""

_WARNINGS = threading.Lock()
"""`warnings.catch_warnings` changes the whole process, so only one thread at a time may be inside it."""


def decode_image(
    data: bytes, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES, size: int | None = None
) -> Image:
    """Decode an untrusted image to upright RGB.

    The size is read from the header and checked before any pixel is decoded. Of an animation the first frame
    is taken; transparency becomes white; the EXIF orientation is applied; 16-bit values are scaled to 8.

    Args:
        data: The file's bytes, of one of `FORMATS`.
        max_pixels: Largest width x height that is decoded.
        max_bytes: Largest file.
        size: Longest side of the result in pixels, or None to keep the size; images are never enlarged.

    Raises:
        CatalexError: With the reason, when the bytes are not a whole image within the limits.
    """
    require("PIL", "images")
    import PIL
    import PIL.Image
    from PIL import ImageOps

    if not data:
        raise user_error("the image file is empty")
    if len(data) > max_bytes:
        raise user_error(
            "the image file is too large", value=len(data), allowed=f"at most {max_bytes:,} bytes"
        )
    PIL.Image.init()
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with PIL.Image.open(
                io.BytesIO(data), formats=[name for name in FORMATS if name in PIL.Image.OPEN]
            ) as image:
                if image.width * image.height > max_pixels:
                    raise user_error(
                        "the image has too many pixels",
                        value=f"{image.width} x {image.height}",
                        allowed=f"at most {max_pixels:,}",
                    )
                if size is not None:
                    # JPEG can be decoded at a fraction of its size; twice the wanted size stays sharp.
                    image.draft("RGB", (2 * size, 2 * size))
                image.load()
                plain = _to_rgb(ImageOps.exif_transpose(image) if _has_orientation(image) else image)
                if size is not None:
                    plain.thumbnail((size, size), PIL.Image.Resampling.LANCZOS)
                return plain
        except CatalexError:
            raise
        except PIL.UnidentifiedImageError:
            raise user_error("not an image", value=data[:16], allowed=FORMATS) from None
        except PIL.Image.DecompressionBombError as error:
            raise user_error(f"the image has too many pixels: {error}") from None
        except Exception as error:
            # Decoders meet damaged files with all kinds of exceptions (OSError, SyntaxError, struct.error).
            reason = str(error).rstrip(".") or type(error).__name__
            raise user_error(f"the image is damaged: {reason}") from None


def _has_orientation(image: Image) -> bool:
    """Whether EXIF asks to turn the image; damaged EXIF is no reason to lose the picture."""
    try:
        return bool(image.getexif().get(0x0112, 1) != 1)
    except Exception:
        return False


def _to_rgb(image: Image) -> Image:
    """Any mode to RGB, transparency on white."""
    import PIL.Image

    if image.mode.startswith(("I", "F")):
        values = np.asarray(image).astype(np.float64)
        if image.mode.startswith("I;16") or (values.size and values.max() > 255):
            values /= 257  # 65535 -> 255
        return PIL.Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layered = image.convert("RGBA")
        background = PIL.Image.new("RGBA", layered.size, (255, 255, 255, 255))
        return PIL.Image.alpha_composite(background, layered).convert("RGB")
    return image.convert("RGB") if image.mode != "RGB" else image.copy()
