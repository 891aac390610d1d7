"""Items by prefix: the right items, pictures only where they can be shown, and what is shown of them."""

from __future__ import annotations

import base64
import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalex.artifacts import write_parquet
from catalex.data.images.store import IMAGES_SCHEMA
from catalex.reporting import thumbnails
from catalex.reporting.blocks import Cards, Heading, Paragraph
from catalex.reporting.prefixes import alike, choose_queries, show
from catalex.reporting.report import render_html, render_markdown
from catalex.reporting.sections.prefixes import prefixes
from catalex.reporting.thumbnails import SIDE, URI, Pictures, open_pictures, thumbnail

CODES = np.array([[1, 2, 3], [1, 2, 4], [1, 5, 3], [2, 2, 3], [1, 2, 5]], np.int32)


def draws(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def common(a: list[int], b: list[int]) -> int:
    """Length of the common beginning, the slow way."""
    length = 0
    while length < len(a) and a[length] == b[length]:
        length += 1
    return length


@given(
    st.integers(1, 3).flatmap(
        lambda levels: st.lists(st.lists(st.integers(0, 2), min_size=levels, max_size=levels), min_size=1)
    ),
    st.data(),
)
def test_no_item_left_out_shares_more_than_one_shown(rows: list[list[int]], data: st.DataObject) -> None:
    item = data.draw(st.integers(0, len(rows) - 1))
    most = data.draw(st.integers(1, 5))
    found = alike(np.array(rows), item, most, draws())
    shared = {i: common(row, rows[item]) for i, row in enumerate(rows) if i != item}
    assert found.sharing == tuple(
        sum(s >= depth for s in shared.values()) for depth in range(1, len(rows[0]) + 1)
    )
    assert len(found.items) == min(most, found.sharing[0])
    assert len(set(found.items)) == len(found.items)
    assert found.depths == tuple(shared[i] for i in found.items)
    assert list(found.depths) == sorted(found.depths, reverse=True)
    rest = [s for i, s in shared.items() if i not in found.items]
    assert len(found.items) < most or not rest or max(rest) <= min(found.depths)


def test_equals_come_in_a_random_order_that_a_seed_fixes() -> None:
    codes = np.zeros((40, 2), np.int32)
    codes[:, 1] = np.arange(40)
    assert alike(codes, 3, 6, draws(1)) == alike(codes, 3, 6, draws(1))
    assert len({alike(codes, 3, 6, draws(seed)).items for seed in range(5)}) == 5


def test_queries_are_random_ones_with_an_image_where_there_are_any() -> None:
    pictured = np.array([9, 2, 5])
    assert choose_queries(50, 4, draws(), pictured).tolist() == [2, 5, 9]
    assert set(choose_queries(50, 2, draws(), pictured).tolist()) < {2, 5, 9}
    assert len(choose_queries(50, 4, draws(), np.zeros(0, np.int64))) == 4
    assert choose_queries(3, 4, draws()).tolist() == [0, 1, 2]


# --- pictures ---------------------------------------------------------------------------------------------


def jpeg(width: int, height: int) -> bytes:
    image = pytest.importorskip("PIL.Image", reason="pictures need Pillow")
    noise = draws().integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Items 1 and 4 have a picture, item 2 a damaged one."""
    content = [jpeg(400, 200), b"\xff\xd8 not an image", jpeg(30, 60)]
    columns = [[1, 2, 4], content, [400, 9, 30], [200, 9, 60], [None] * 3]
    arrays = [pa.array(c, field.type) for c, field in zip(columns, IMAGES_SCHEMA, strict=True)]
    write_parquet(tmp_path / "images.parquet", pa.Table.from_arrays(arrays, schema=IMAGES_SCHEMA))
    return tmp_path / "images.parquet"


def size_of(uri: str | None) -> tuple[int, int]:
    image = pytest.importorskip("PIL.Image", reason="pictures need Pillow")
    assert uri is not None
    size: tuple[int, int] = image.open(io.BytesIO(base64.b64decode(uri.removeprefix(URI)))).size
    return size


def test_thumbnails_are_small_and_bad_images_are_counted(images: Path) -> None:
    own = open_pictures({"movies": images})["movies"]
    assert own.items.tolist() == [1, 2, 4]
    assert size_of(own.of(1)) == (SIDE, SIDE // 2)
    assert size_of(own.of(4)) == (30, 60), "small images are not enlarged"
    assert own.of(0) is None
    assert own.of(2) is None
    assert own.of(2) is None
    assert (own.unreadable, own.left_out) == (1, 0), "a bad image counts once"


def test_the_sum_of_all_pictures_is_bounded(images: Path) -> None:
    uri = open_pictures({"movies": images})["movies"].of(1)
    assert uri is not None
    own = open_pictures({"movies": images}, limit=2 * len(uri) + 1)["movies"]
    assert [own.of(1) is None for _ in range(4)] == [False, False, True, True]
    assert own.left_out == 2
    shared = open_pictures({"a": images, "b": images}, limit=2 * len(uri) + 1)
    assert [one.of(1) is None for one in (shared["a"], shared["a"], shared["b"])] == [False, True, False]


def test_domains_without_images_have_no_pictures(images: Path, tmp_path: Path) -> None:
    assert list(open_pictures({"a": tmp_path / "none.parquet", "movies": images})) == ["movies"]


def test_without_pillow_titles_remain(
    images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        thumbnails.importlib.util, "find_spec", lambda name: None if name == "PIL" else real(name)
    )
    assert open_pictures({"movies": images}) == {}
    assert "pip install 'catalex[images]'" in capsys.readouterr().err
    assert open_pictures({}) == {}
    assert not capsys.readouterr().err, "who has no images needs no Pillow"


def test_a_thumbnail_is_encoded_anew() -> None:
    hidden = jpeg(20, 20) + b"hidden"
    assert b"hidden" not in thumbnail(hidden)


# --- the section ------------------------------------------------------------------------------------------


def report_of(pictures: Pictures | None, **facts: Any) -> dict[str, Any]:
    titles = ["Brush", "<b>Comb</b>", "Soap", "Towel " * 30, "Dryer"]
    queries = [show(alike(CODES, item, 2, draws()), CODES, titles, pictures) for item in (1, 3)]
    return {"prefixes": {"beauty": {"queries": queries, **facts}}}


def test_titles_codes_and_counts_are_shown(images: Path) -> None:
    section = prefixes(report_of(open_pictures({"m": images})["m"], unreadable=1, left_out=1200))
    assert [b.text for b in section.blocks if isinstance(b, Heading)] == ["beauty"]
    first, second = (b for b in section.blocks if isinstance(b, Cards))
    assert first.heading == "Identifier 1 · 2 · 4"
    assert first.text == "2 other items share its first 2 codes, 3 other items share its first code."
    assert first.cards[0].strong
    assert first.cards[0].title == "<b>Comb</b>"
    assert {(card.title, card.note) for card in first.cards[1:]} == {
        ("Brush", "2 codes"),
        ("Dryer", "2 codes"),
    }
    assert [bool(card.picture) for card in first.cards] == [
        True,
        *(c.title == "Dryer" for c in first.cards[1:]),
    ]
    assert second.text == "No other item shares its first code."
    assert len(second.cards[0].title) == 80
    told = [b.text for b in section.blocks if isinstance(b, Paragraph)]
    assert told[-1] == (
        "Pictures that are missing here: 1 could not be read, 1,200 would have made this page too large."
    )


def test_pictures_stand_in_the_page_and_titles_in_the_markdown(images: Path) -> None:
    report = report_of(open_pictures({"m": images})["m"])
    page, markdown = render_html(report), render_markdown(report)
    assert page.count(f'<img src="{URI}') == 2
    assert "<b>Comb" not in page
    assert "- **&lt;b&gt;Comb&lt;/b&gt;**\n- " in markdown
    assert "Dryer (2 codes)" in markdown
    assert URI not in markdown


@pytest.mark.parametrize(
    "picture",
    ["https://example.org/a.jpg", "data:image/svg+xml;base64,AAAA", URI + 'AA" onload="x', "a.jpg", 3, URI],
)
def test_nothing_but_an_inline_jpeg_is_shown(picture: object) -> None:
    query = {"title": "x", "codes": [1], "picture": picture, "sharing": [0], "items": []}
    assert "<img" not in render_html({"prefixes": {"d": {"queries": [query]}}})


def test_gaps_are_no_failure() -> None:
    assert prefixes({}).missing
    assert prefixes({"prefixes": {"d": {"queries": []}}}).missing
    assert not prefixes({"prefixes": {"d": {"queries": [{}]}}}).missing
    assert "Identifier" in render_markdown({"prefixes": {"d": {"queries": [{"items": [{}]}]}}})
