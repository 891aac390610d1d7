"""`catalex data images`: addresses of a prepared domain, from a server on this machine."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from catalex.artifacts import write_parquet
from catalex.data import columns as c
from catalex.data.images import ImageStore
from catalex.errors import CatalexError
from catalex.pipelines.images import fetch_domain_images
from support.server import Server


def picture(width: int = 90, height: int = 60) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, "PNG")
    return buffer.getvalue()


def prepared(folder: Path, images: list[str | None]) -> Path:
    rows = [{c.ITEM_ID: item, c.IMAGE: image} for item, image in enumerate(images)]
    write_parquet(folder / c.ITEMS_FILE, pa.Table.from_pylist(rows, schema=c.ITEMS_SCHEMA))
    return folder


def test_counts_what_was_fetched_kept_and_failed(server: Server, tmp_path: Path) -> None:
    good = server.add("/a.png", picture())
    folder = prepared(tmp_path, [good, None, server.url + "/missing.png", " ", "file:///nowhere.png"])
    said = fetch_domain_images(folder, size=32, allow_local=False)
    assert said.startswith("1 images fetched, 0 kept, 2 failed; 2 items name none\n")
    assert "failures.jsonl" in said
    assert pq.read_table(folder / c.IMAGES_FILE)["width"].to_pylist() == [32]
    server.add("/missing.png", picture())
    again = fetch_domain_images(folder, size=32, allow_local=False)
    assert again.startswith("1 images fetched, 1 kept, 1 failed")
    assert ImageStore(folder / c.IMAGES_FILE).ids.tolist() == [0, 2]
    assert len(server.asked("/a.png")) == 1


def test_local_files_when_allowed(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(picture())
    folder = prepared(tmp_path / "domain", [f"file://{path}", str(path)])
    assert fetch_domain_images(folder, size=32, allow_local=True).startswith("2 images fetched")


def test_images_of_the_source_are_left_alone(tmp_path: Path) -> None:
    folder = prepared(tmp_path, ["images.parquet#0", None])
    (folder / c.IMAGES_FILE).write_bytes(b"from the source")
    said = fetch_domain_images(folder, size=32, allow_local=False)
    assert said == "nothing to fetch: 1 images came with the source, 1 items name none"
    assert (folder / c.IMAGES_FILE).read_bytes() == b"from the source"


def test_nothing_that_came_with_the_source_is_overwritten(server: Server, tmp_path: Path) -> None:
    url = server.add("/a.png", picture())
    mixed = prepared(tmp_path / "mixed", ["images.parquet#0", url])
    with pytest.raises(CatalexError, match="1 items have images of their source and 1 name addresses"):
        fetch_domain_images(mixed, size=32, allow_local=False)
    shipped = prepared(tmp_path / "shipped", [url])
    pq.write_table(pa.table({"item_id": [0], "jpeg": [b"x"]}), shipped / c.IMAGES_FILE)
    before = (shipped / c.IMAGES_FILE).read_bytes()
    for _ in range(2):
        with pytest.raises(CatalexError, match=r"'source' is missing.*were not fetched.*[Mm]ove the file"):
            fetch_domain_images(shipped, size=32, allow_local=False)
    assert (shipped / c.IMAGES_FILE).read_bytes() == before
    assert server.requests == []


def test_wrong_inputs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CatalexError, match=r"items\.parquet: the file does not exist"):
        fetch_domain_images(tmp_path, size=32, allow_local=False)
    with pytest.raises(CatalexError, match=r"size: .*greater than or equal to 16"):
        fetch_domain_images(prepared(tmp_path, [None]), size=3, allow_local=False)
