"""Pictures in requests: bombs are refused by what their head says, before anything is unpacked."""

from __future__ import annotations

import base64
import io
import struct
import zlib

import pytest

pytest.importorskip("starlette", reason="needs the extra 'serve'")
pytest.importorskip("PIL", reason="needs the extra 'images'")

from PIL import Image

from catalex.serving.pictures import picture
from catalex.serving.problem import ProblemError

LIMITS = {"max_bytes": 100_000, "max_pixels": 10_000}


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def drawn(width: int, height: int, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(stream, kind)
    return stream.getvalue()


def bomb(side: int) -> bytes:
    """A PNG that says it has side x side pixels, in a few hundred bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    packed = zlib.compress(b"\0" * 100_000, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_pictures_come_back_as_they_were(kind: str) -> None:
    data = drawn(20, 30, kind)
    assert picture(encoded(data), **LIMITS) == data
    assert picture(f"data:image/x;base64,{encoded(data)}", **LIMITS) == data
    assert picture(None, **LIMITS) is None


def test_the_limit_of_pixels_is_exact() -> None:
    assert picture(encoded(drawn(100, 100)), **LIMITS)
    with pytest.raises(ProblemError, match="more than 10000 pixels") as caught:
        picture(encoded(drawn(101, 100)), **LIMITS)
    assert caught.value.status == 413


@pytest.mark.parametrize("side", [5_000, 60_000])
def test_a_bomb_is_not_unpacked(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def unpack(*_: object) -> None:
        raise AssertionError("unpacked")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", unpack)
    with pytest.raises(ProblemError, match="pixels"):
        picture(encoded(bomb(side)), **LIMITS)


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("A" * 140_000, 413),
        ("no base64!", 422),
        ("é", 422),
        ("", 422),
        (encoded(b"BM not a picture"), 422),
        (encoded(drawn(20, 30)[:60]), 422),
        (encoded(drawn(20, 30, "BMP")), 422),
        (encoded(b"%!PS-Adobe-3.0 EPSF\n%%BoundingBox: 0 0 9 9\n"), 422),
    ],
)
def test_what_is_no_picture_is_refused_in_a_sentence(text: str, status: int) -> None:
    with pytest.raises(ProblemError, match=r"^image: .*\.$") as caught:
        picture(text, **LIMITS)
    assert caught.value.status == status
