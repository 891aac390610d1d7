"""Images: every kind of broken file, made on the fly; fetching from a local server that fails on demand."""

from __future__ import annotations

import builtins
import contextlib
import io
import json
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import catalex.errors as errors_module
from catalex.data.images import IMAGES_SCHEMA, ImageOptions, ImageStore, decode_image, fetch_images
from catalex.errors import CatalexError
from support.server import Server

DEVELOPMENT_DATA = Path(__file__).resolve().parents[3] / "../shared/data"
QUICK = ImageOptions(interval=0, backoff=0.01, retries=1, timeout=5)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def picture(width: int = 40, height: int = 20, seed: int = 0) -> Image.Image:
    """Left half red, right half blue, with some noise."""
    pixels = np.random.default_rng(seed).integers(0, 20, (height, width, 3)).astype(np.uint8)
    pixels[:, : width // 2, 0] += 230
    pixels[:, width // 2 :, 2] += 230
    return Image.fromarray(pixels)


def jpeg(width: int = 40, height: int = 20, seed: int = 0) -> bytes:
    return encoded(picture(width, height, seed), "JPEG", quality=95)


def png_bomb(width: int, height: int) -> bytes:
    """A valid PNG header and a tiny body that claims `width` x `height` black pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    body = zlib.compress(bytes(1 << 20), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def is_red(pixel: Any) -> bool:
    return bool(pixel[0] > 180 and pixel[2] < 90)


def is_blue(pixel: Any) -> bool:
    return bool(pixel[2] > 180 and pixel[0] < 90)


# --- decoding -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "mode"),
    [
        ("JPEG", "RGB"),
        ("JPEG", "CMYK"),
        ("PNG", "RGB"),
        ("PNG", "RGBA"),
        ("PNG", "P"),
        ("GIF", "P"),
        ("WEBP", "RGB"),
        ("WEBP", "RGBA"),
        ("BMP", "RGB"),
        ("TIFF", "CMYK"),
    ],
)
def test_every_format_and_mode_becomes_upright_rgb(form: str, mode: str) -> None:
    image = decode_image(encoded(picture().convert(mode), form))
    assert (image.mode, image.size) == ("RGB", (40, 20))
    assert is_red(image.getpixel((5, 10)))
    assert is_blue(image.getpixel((35, 10)))


def test_grey_is_repeated_in_every_channel() -> None:
    image = decode_image(encoded(Image.new("L", (3, 3), 77), "PNG"))
    assert image.getpixel((1, 1)) == (77, 77, 77)


def test_sixteen_bits_are_scaled_and_not_cut() -> None:
    ramp = np.array([[0, 257 * 100, 65535]], np.uint16)
    image = decode_image(encoded(Image.fromarray(ramp), "PNG"))
    assert [image.getpixel((x, 0))[0] for x in range(3)] == [0, 100, 255]  # type: ignore[index]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_becomes_white(mode: str) -> None:
    image = decode_image(encoded(Image.new(mode, (4, 4), 0), "PNG"))
    assert image.getpixel((2, 2)) == (255, 255, 255)


def test_palette_with_transparency_bytes_raises_no_warning() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 250, 0, 0])
    decoded = decode_image(encoded(image, "PNG", transparency=bytes([0, 128])))
    assert decoded.getpixel((0, 0)) == pytest.approx((252, 127, 127), abs=2)


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert is_red(decode_image(data).getpixel((4, 4)))


def test_the_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    image = decode_image(encoded(picture(), "JPEG", exif=exif, quality=95))
    assert image.size == (20, 40)
    assert is_red(image.getpixel((10, 5)))
    assert is_blue(image.getpixel((10, 35)))


def test_damaged_exif_does_not_lose_the_picture() -> None:
    data = encoded(
        picture(), "JPEG", exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff\x01\x12" + b"\xff" * 9
    )
    assert decode_image(data).size == (40, 20)


def test_one_pixel_is_an_image() -> None:
    assert decode_image(encoded(Image.new("RGB", (1, 1), "blue"), "PNG")).getpixel((0, 0)) == (0, 0, 255)


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (400, 80, (50, 10)),
        (80, 400, (10, 50)),
        (30, 20, (30, 20)),
        (1, 1000, (1, 50)),
        (700, 700, (50, 50)),
    ],
)
def test_the_longest_side_is_limited_and_nothing_is_enlarged(
    width: int, height: int, expected: tuple[int, int]
) -> None:
    for data in (jpeg(width, height), encoded(picture(width, height), "PNG")):
        assert decode_image(data, size=50).size == expected


def test_a_large_jpeg_decoded_at_a_fraction_looks_like_the_full_one() -> None:
    data = jpeg(800, 600)
    small = np.asarray(decode_image(data, size=100), np.float64)
    full = np.asarray(decode_image(data).resize((100, 75), Image.Resampling.LANCZOS), np.float64)
    assert np.abs(small - full).mean() < 2


def test_a_png_bomb_is_refused_by_its_header() -> None:
    bomb = png_bomb(30_000, 30_000)
    assert len(bomb) < 2_000
    began = time.monotonic()
    with pytest.raises(CatalexError, match="too many pixels"):
        decode_image(bomb)
    assert time.monotonic() - began < 1


def test_a_bomb_between_our_limit_and_pillows_raises_no_warning() -> None:
    with pytest.raises(CatalexError, match=r"10000 x 10000.*at most 50,000,000"):
        decode_image(png_bomb(10_000, 10_000))
    assert decode_image(png_bomb(1000, 1000), max_pixels=1_000_000).size == (1000, 1000)
    with pytest.raises(CatalexError, match="too many pixels"):
        decode_image(png_bomb(1000, 1001), max_pixels=1_000_000)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<html>not found</html>", "not an image"),
        (b"\x89PNG\r\n\x1a\n", "not an image|damaged"),
        (jpeg()[: len(jpeg()) // 2], "damaged"),
        (encoded(picture(), "PNG")[:-200], "damaged"),
        (encoded(picture(), "GIF")[:60], "damaged|not an image"),
        (encoded(picture(), "WEBP")[:50], "damaged|not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
    ],
)
def test_broken_files_get_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(CatalexError, match=reason):
        decode_image(data)


def test_large_files_are_refused_before_they_are_looked_at() -> None:
    with pytest.raises(CatalexError, match=r"too large.*at most 10 bytes"):
        decode_image(b"x" * 11, max_bytes=10)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(form=st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"]), data=st.data())
def test_damage_anywhere_gives_an_image_or_a_sentence(form: str, data: st.DataObject) -> None:
    whole = bytearray(encoded(picture(16, 16), form))
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(1, len(whole)))
    with contextlib.suppress(CatalexError):  # any other exception fails the test
        image = decode_image(bytes(whole[:cut]), max_pixels=1_000_000, size=32)
        assert image.mode == "RGB"
        assert max(image.size) <= 32


# --- fetching -----------------------------------------------------------------------------------------------


def failures(folder: Path) -> dict[int, str]:
    lines = (folder / "failures.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["item_id"]: row["reason"] for row in map(json.loads, lines)}


def test_fetches_shrinks_and_writes_in_order_of_item(server: Server, tmp_path: Path) -> None:
    urls = {item: server.add(f"/{item}.png", encoded(picture(300, 100, item), "PNG")) for item in (7, 0, 3)}
    report = fetch_images(urls.items(), tmp_path, QUICK)
    assert (report.fetched, report.kept, report.failed, report.failures) == (3, 0, 0, None)
    table = pq.read_table(report.images)
    assert table.schema.equals(IMAGES_SCHEMA)
    assert table["item_id"].to_pylist() == [0, 3, 7]
    assert table["source"].to_pylist() == [urls[0], urls[3], urls[7]]
    assert table["width"].to_pylist() == [224] * 3
    assert table["height"].to_pylist() == [75] * 3
    stored = Image.open(io.BytesIO(table["jpeg"][0].as_py()))
    assert (stored.format, stored.size) == ("JPEG", (224, 75))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images.parquet"]


def test_every_failure_is_listed_with_its_reason_and_never_fatal(server: Server, tmp_path: Path) -> None:
    addresses = {
        0: server.add("/good.jpg", jpeg()),
        1: server.url + "/missing.jpg",
        2: server.add("/page.jpg", b"<html>"),
        3: server.add("/bomb.png", png_bomb(30_000, 30_000)),
        4: server.add("/placeholder.gif", encoded(Image.new("P", (1, 1)), "GIF")),
        5: server.add("/large.jpg", jpeg(400, 400)),
        6: "ftp://example.org/a.jpg",
        7: "",
        8: server.add("/busy.jpg", jpeg(), statuses=[(503, {})] * 9),
        9: "http://127.0.0.1:9/closed.jpg",
        10: server.add("/circle.jpg", b"", statuses=[(302, {"Location": "/circle.jpg"})] * 30),
        11: server.add("/empty.jpg", b""),
        12: "/etc/passwd",
        13: "file:///etc/passwd",
        14: server.add("/cut.jpg", jpeg(), cut_after=[50, 50]),
    }
    report = fetch_images(addresses.items(), tmp_path, QUICK.model_copy(update={"max_bytes": 5000}))
    assert (report.fetched, report.failed) == (1, 14)
    reasons = failures(tmp_path)
    for item, words in {
        1: "404",
        2: "not an image",
        3: "too many pixels",
        4: "placeholder",
        5: "more than 5,000 bytes",
        6: "not a web address",
        7: "no address",
        8: "503",
        9: "refused",
        10: "redirect",
        11: "empty",
        12: "local files are not allowed",
        13: "local files are not allowed",
        14: "peer closed",
    }.items():
        assert words in reasons[item], (item, reasons[item])
    assert pq.read_table(report.images)["item_id"].to_pylist() == [0]


def test_a_later_run_tries_failures_again_and_fetches_nothing_twice(server: Server, tmp_path: Path) -> None:
    items = [(0, server.add("/0.jpg", jpeg())), (1, server.url + "/1.jpg")]
    assert fetch_images(items, tmp_path, QUICK).failed == 1
    server.add("/1.jpg", jpeg())
    items.append((2, server.add("/2.jpg", jpeg(seed=2))))
    second = fetch_images(items, tmp_path, QUICK)
    assert (second.fetched, second.kept, second.failed) == (2, 1, 0)
    assert not (tmp_path / "failures.jsonl").exists()
    before = second.images.read_bytes()
    third = fetch_images(items, tmp_path, QUICK)
    assert (third.fetched, third.kept) == (0, 3)
    assert third.images.read_bytes() == before
    assert [len(server.asked(f"/{item}.jpg")) for item in range(3)] == [1, 2, 1]


def test_ids_may_change_between_runs_since_images_are_kept_by_address(server: Server, tmp_path: Path) -> None:
    first, second = server.add("/a.jpg", jpeg(seed=1)), server.add("/b.jpg", jpeg(seed=2))
    fetch_images([(0, first), (1, second)], tmp_path, QUICK)
    old = ImageStore(tmp_path / "images.parquet")
    fetch_images([(0, second), (5, first)], tmp_path, QUICK)
    new = ImageStore(tmp_path / "images.parquet")
    assert (new.get(0), new.get(5), new.get(1)) == (old.get(1), old.get(0), None)
    assert len(server.requests) == 2


def test_items_with_one_address_share_one_request(server: Server, tmp_path: Path) -> None:
    url = server.add("/a.jpg", jpeg())
    assert fetch_images([(item, url) for item in range(5)], tmp_path, QUICK).fetched == 5
    assert len(server.requests) == 1


def test_killed_in_the_middle_then_run_again(server: Server, tmp_path: Path) -> None:
    items = [(i, server.add(f"/{i}.jpg", jpeg(seed=i), delay=0.05)) for i in range(40)]
    (tmp_path / "items.json").write_text(json.dumps(items))
    code = (
        "import json, sys; from pathlib import Path; from catalex.data.images import *\n"
        "folder = Path(sys.argv[1]); items = json.loads((folder / 'items.json').read_text())\n"
        "fetch_images(items, folder / 'run', ImageOptions(interval=0))"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 60
    while len(server.requests) < 20 and time.monotonic() < limit:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    asked = len(server.requests)
    assert 20 <= asked < 40
    assert not (tmp_path / "run/images.parquet").exists()
    resumed = fetch_images(items, tmp_path / "run", QUICK)
    assert resumed.kept > 0
    assert resumed.kept + resumed.fetched == 40
    whole = fetch_images(items, tmp_path / "whole", QUICK)
    assert resumed.images.read_bytes() == whole.images.read_bytes()


def test_workers_change_nothing(server: Server, tmp_path: Path) -> None:
    items = [(i, server.add(f"/{i}.jpg", jpeg(seed=i))) for i in range(12)]
    written = []
    for workers in (1, 6):
        options = QUICK.model_copy(update={"workers": workers, "per_host": workers})
        written.append(fetch_images(items, tmp_path / str(workers), options).images.read_bytes())
    assert written[0] == written[1]


def test_one_host_is_asked_politely(server: Server, tmp_path: Path) -> None:
    items = [(i, server.add(f"/{i}.jpg", jpeg(), delay=0.03)) for i in range(8)]
    fetch_images(items, tmp_path, ImageOptions(workers=8, per_host=2, interval=0.05))
    times = sorted(request.time for request in server.requests)
    assert server.busiest <= 2
    assert times[-1] - times[0] >= 7 * 0.05 - 0.02
    assert "catalex" in server.requests[0].headers["User-Agent"]


def test_a_pause_the_host_asks_for_is_kept(server: Server, tmp_path: Path) -> None:
    url = server.add("/a.jpg", jpeg(), statuses=[(429, {"Retry-After": "1"})])
    assert fetch_images([(0, url)], tmp_path, QUICK).fetched == 1
    first, second = (request.time for request in server.requests)
    assert second - first >= 0.95


def test_a_host_that_asks_for_hours_is_left_alone(server: Server, tmp_path: Path) -> None:
    items = [
        (i, server.add(f"/{i}.jpg", jpeg(), statuses=[(429, {"Retry-After": "7200"})])) for i in range(9)
    ]
    report = fetch_images(items, tmp_path, QUICK.model_copy(update={"per_host": 1}))
    assert report.failed == 9
    assert len(server.requests) == 1
    assert "asks to wait 7,200 s" in failures(tmp_path)[8]


def test_local_files_when_allowed(tmp_path: Path) -> None:
    path = tmp_path / "a b.jpg"
    path.write_bytes(jpeg(seed=1))
    items = [(0, str(path)), (1, "file://" + str(path).replace(" ", "%20")), (2, str(tmp_path / "none.jpg"))]
    report = fetch_images(items, tmp_path / "out", QUICK, allow_local=True)
    assert (report.fetched, report.failed) == (2, 1)
    assert "No such file" in failures(tmp_path / "out")[2]
    path.write_bytes(jpeg(10, 10))
    fetch_images(items[:1], tmp_path / "out", QUICK, allow_local=True)
    assert pq.read_table(report.images)["width"].to_pylist() == [10]


def test_no_items_write_an_empty_file(tmp_path: Path) -> None:
    report = fetch_images([], tmp_path, QUICK)
    assert pq.read_table(report.images).num_rows == 0
    assert len(ImageStore(report.images)) == 0


@pytest.mark.parametrize(
    ("items", "words"),
    [([(1, "http://a/"), (1, "http://b/")], "two images"), ([(-1, "http://a/")], "not an item id")],
)
def test_wrong_items_are_refused_before_any_request(
    items: list[tuple[int, str]], words: str, tmp_path: Path
) -> None:
    with pytest.raises(CatalexError, match=words):
        fetch_images(items, tmp_path, QUICK)


def test_a_damaged_partial_file_gets_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "images.partial.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(CatalexError, match=r"images\.partial\.sqlite.*[Dd]elete it"):
        fetch_images([], tmp_path, QUICK)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "PIL":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(errors_module.importlib, "import_module", without)
    with pytest.raises(CatalexError, match=r"'PIL' is not installed.*catalex\[images\]"):
        decode_image(b"x")


# --- reading ------------------------------------------------------------------------------------------------


def write_store(path: Path, ids: list[int], rows: int = 2) -> None:
    count = len(ids)
    columns = [ids, [f"jpeg {i}".encode() for i in ids], [1] * count, [1] * count, ["-"] * count]
    pq.write_table(pa.table(columns, schema=IMAGES_SCHEMA), path, row_group_size=rows)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ids=st.lists(st.integers(0, 50), unique=True),
    rows=st.integers(1, 7),
    groups=st.integers(1, 3),
    data=st.data(),
)
def test_the_store_agrees_with_a_dict(
    tmp_path: Path, ids: list[int], rows: int, groups: int, data: st.DataObject
) -> None:
    write_store(tmp_path / "images.parquet", ids, rows)
    store = ImageStore(tmp_path / "images.parquet", groups_in_memory=groups)
    expected = {item: f"jpeg {item}".encode() for item in ids}
    assert store.ids.tolist() == ids
    assert len(store) == len(ids)
    for item in data.draw(st.lists(st.integers(-1, 60), max_size=20)):
        assert store.get(item) == expected.get(item)
        assert (item in store) == (item in expected)
    assert len(store._groups) <= groups


def test_the_store_refuses_what_is_no_image_file(tmp_path: Path) -> None:
    path = tmp_path / "images.parquet"
    with pytest.raises(CatalexError, match="does not exist"):
        ImageStore(path)
    path.write_bytes(b"PAR1 no PAR1")
    with pytest.raises(CatalexError, match="not a readable Parquet file"):
        ImageStore(path)
    pq.write_table(pa.table({"item_id": [1]}), path)
    with pytest.raises(CatalexError, match="'jpeg' is missing"):
        ImageStore(path)
    write_store(path, [3, 3])
    with pytest.raises(CatalexError, match="occurs twice"):
        ImageStore(path)


@pytest.mark.skipif(not DEVELOPMENT_DATA.is_dir(), reason="the development data is not here")
def test_posters_of_the_development_data_can_be_read_and_decoded() -> None:
    store = ImageStore(DEVELOPMENT_DATA / "movies/images.parquet")
    assert len(store) == 2758
    for item in store.ids[::200]:
        data = store.get(int(item))
        assert data is not None
        assert max(decode_image(data, size=224).size) <= 224
