"""A live catalogue over a tokenizer trained from texts and images: items that come while it is served."""

from __future__ import annotations

import importlib.util
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

pytest.importorskip("fastapi", reason="needs the extra 'serve'")
pytest.importorskip("sklearn", reason="needs the extra 'text'")
pytest.importorskip("PIL", reason="needs the extra 'images'")

from PIL import Image

from catalex.client import Client, ServiceError
from catalex.data import columns as c
from catalex.features import ItemContent
from catalex.pipelines.recipe import read_recipe
from catalex.pipelines.run import run_recipe
from catalex.tokenizers.utgrec import UTGRec
from support.service import Running, running
from support.tiny_story import DOMAINS, ITEMS, write_story
from unit.features.tiny import tiny_transformer

ONE, TWO = DOMAINS
TINY: dict[str, Any] = {
    "name": "utgrec",
    "image_target": None,
    "root": 16,
    "leaf": 40,
    "code_width": 8,
    "projection_hidden": 16,
    "learning_rate": 3e-3,
    "fine_tune_rate": 3e-3,
    "batch": 32,
    "epochs": 2,
    "fine_tune_epochs": 1,
    "quantizer_warmup": 1,
}
LOOKING = pytest.param(
    "looking",
    marks=pytest.mark.skipif(
        importlib.util.find_spec("efficientnet_lite_pytorch") is None, reason="needs the extra 'images'"
    ),
)


def photo(colour: tuple[int, int, int], stripes: int) -> bytes:
    """A small JPEG of coloured stripes."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, (np.arange(64) // stripes) % 2 == 0] = colour
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "JPEG")
    return written.getvalue()


@pytest.fixture(scope="module", params=["reading", "frozen", LOOKING])
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The tiny story served: its encoder reads texts, or frozen vectors, or texts and images."""
    folder = tmp_path_factory.mktemp("utgrec-serve")
    path = write_story(folder)
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    encoder: dict[str, Any] = {"name": "frozen", "width": 16}
    if request.param != "frozen":
        encoder = {"name": "mini", "folder": str(tiny_transformer(folder / "bert")), "max_tokens": 24}
    if request.param == "looking":
        encoder["images"] = "efficientnet-lite0"
        for year in DOMAINS:
            rows = [{c.ITEM_ID: i, c.IMAGE: photo((200, 4 * i, 40), 2 + i % 7)} for i in range(0, ITEMS, 3)]
            schema = pa.schema([(c.ITEM_ID, pa.int32()), (c.IMAGE, pa.binary())])
            pq.write_table(pa.Table.from_pylist(rows, schema), folder / "data" / year / c.IMAGES_FILE)
    recipe["tokenizer"] = {**TINY, "encoder": encoder}
    if request.param == "frozen":
        recipe["tokenizer"]["shortcut"] = False
    recipe["tokenize"] = {"domains": [ONE], "adapt": {TWO: "projection"}}
    recipe["evaluate"] = {"baselines": [], "examples": 1}
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    before = Path.cwd()
    os.chdir(folder)
    try:
        run_recipe(read_recipe(path))
    finally:
        os.chdir(before)
    with running(folder / "run" / "bundle" / TWO) as found:
        yield found


@pytest.fixture(scope="module")
def client(shop: Running) -> Iterator[Client]:
    with Client(shop.address) as found:
        yield found


@pytest.mark.slow
def test_an_item_with_text_is_represented_placed_and_recommendable_at_once(
    shop: Running, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[ItemContent] = []
    represent = UTGRec.represent

    def watched(self: UTGRec, content: Any, *parts: Any, **named: Any) -> Any:
        asked.extend(content)
        return represent(self, content, *parts, **named)

    monkeypatch.setattr(UTGRec, "represent", watched)
    live = shop.service.present.catalogue
    taken = {item.identifier for item in live}
    history = [item["key"] for item in client.search("", 2)]
    would = client.tokenize("PURPLE ZEBRA LAMP")["identifier"]
    [added] = client.add([{"key": "text", "title": "PURPLE ZEBRA LAMP", "categories": ["Lamps"]}])
    assert [one.text for one in asked][:1] == ["PURPLE ZEBRA LAMP"]
    assert len(asked) >= 2, "encoded for the preview and for the item"
    assert tuple(added["identifier"]) not in taken
    [found] = client.recommend(history, 1, categories=["Lamps"])
    assert found["key"] == "text"
    assert len(client.recommend(["text"], 3)) == 3, "and it can be in a history"
    text = live.get("text")
    assert text is not None
    own = live.reader.codes(live.reader.vectors([ItemContent(text.text)]))[0].tolist()
    if tuple(own) not in taken:
        assert added["identifier"] == own, "the nearest codes, which were free"
    assert would[0] == client.tokenize("PURPLE ZEBRA LAMP")["identifier"][0]
    assert {item.key: item.identifier for item in live if item.key != "text"}.keys() == {
        item.key for item in live
    } - {"text"}
    assert taken == {item.identifier for item in live if item.key != "text"}, "nobody moved"


@pytest.mark.slow
def test_an_image_counts_where_the_encoder_looks_and_is_kept_everywhere(
    shop: Running, client: Client
) -> None:
    live, red = shop.service.present.catalogue, photo((220, 10, 10), 5)
    looks = live.reader.wants_images
    text = "STRIPED GLASS VASE"
    with_and_without = live.reader.vectors([ItemContent(text, red), ItemContent(text)])
    assert np.array_equal(*with_and_without) is not looks
    [added] = client.add([{"key": "both", "title": text, "image": red, "categories": ["Vases"]}])
    assert added["has_image"]
    assert shop.http.get("/v1/picture", params={"key": "both"}).content == red
    [found] = client.recommend(["both"], 1, categories=["Vases"])
    assert found["key"] == "both"
    assert found["identifier"] == added["identifier"]
    alone = {"key": "picture", "image": photo((10, 220, 10), 3)}
    if looks:
        assert client.add([alone])[0]["identifier"]
        assert client.tokenize(image=red)["identifier"]
    else:
        with pytest.raises(ServiceError, match="no content"):
            client.add([alone])
    identifiers = [item.identifier for item in live]
    assert len(set(identifiers)) == len(identifiers)
